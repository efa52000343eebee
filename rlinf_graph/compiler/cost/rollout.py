"""Sampling: prompts are read, then steps are summed over the distribution of response lengths.

The batch shrinks as sequences end, so a step late in the tail costs almost as much as a full one
and yields a few tokens: a model of the mean length would be wrong by construction. Where the
key-value cache does not hold every sequence at once, those that wait take the places that become
free (engines that page their cache, Yu et al. 2022, Orca) or run in a later batch. Such engines
read prompts along with the steps of what decodes (Agrawal et al. 2024, Sarathi-Serve).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rlinf_graph.compiler.cost.coefficients import split_of
from rlinf_graph.compiler.cost.kernels import MEASURED, Kernels, Missing, Surface
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.passes import Parts, per_rank
from rlinf_graph.compiler.cost.served import Formats, formats_of
from rlinf_graph.compiler.cost.steps import Load, Seconds, Steps
from rlinf_graph.ir.work import Generate

Array = npt.NDArray[np.float64]

CACHE_LIMIT = 0.9
"""Share of a device's memory that weights and key-value cache may take together, as vLLM has it."""


PREFILL = "prefill"
ROOFLINE = "roofline"
Origin = tuple[str, str]
"""Where seconds come from; and why not from measured kernels, where those were asked for."""


@dataclass(frozen=True)
class Rollout:
    """One chunk of a node's sampling on one replica.

    Attributes:
        layout: of the model.
        work: of the whole node.
        kept: bytes that other nodes keep on the device, which the cache cannot have.
        formats: of weights and cache; None for those of the layout's number format.
        tokens: that a step takes at most; 0 for what the engine has as its default.
        kernels: a source of measured kernels; None for the roofline alone.
    """

    layout: Layout
    work: Generate
    kept: float = 0.0
    formats: Formats | None = None
    tokens: int = 0
    kernels: Kernels | None = None

    @cached_property
    def steps(self) -> Steps:
        """What a step takes."""
        drafted = self.work.speculative.tokens if self.work.speculative else 0
        formats = self.formats or formats_of(self.layout.dtype)
        found = self._looked_up(formats)
        measured = None if isinstance(found, Missing) else found
        return Steps(self.layout, formats, self.work.prompt_tokens, drafted, measured)

    def _looked_up(self, formats: Formats) -> Surface | Missing:
        if self.kernels is None:
            return Missing("")
        if self.work.speculative:
            return Missing("no tables of steps that check drafted tokens")
        return self.kernels.table(self.layout, formats)

    @property
    def origin(self) -> Origin:
        """Of the seconds."""
        found = self._looked_up(self.steps.formats)
        return (ROOFLINE, found.reason) if isinstance(found, Missing) else (MEASURED, "")

    @cached_property
    def sequences(self) -> int:
        """Responses of one chunk and replica."""
        return per_rank(self.work.samples, self.layout.settings.chunks * self.layout.parallel.dp)

    @cached_property
    def prompts(self) -> int:
        """Prompts to prefill: the responses of a group share one."""
        return math.ceil(self.sequences / max(1, self.work.group))

    @cached_property
    def ends(self) -> Array:
        """Response lengths, ascending, each of equal probability."""
        return np.sort(np.asarray(self.work.response.quantiles, dtype=np.float64))

    @cached_property
    def alive(self) -> Array:
        """The share of responses that are at least as long as each of `ends`."""
        count = len(self.ends)
        return np.arange(count, 0, -1, dtype=np.float64) / count

    @cached_property
    def rows(self) -> Array:
        """The share of a batch that is decoded: those alive, or the batch since it last halved."""
        if self.layout.traits.paged:
            return self.alive
        shares, row = np.empty_like(self.alive), 1.0
        for index, share in enumerate(self.alive.tolist()):
            row = share if share <= row / 2 else row
            shares[index] = row
        return shares

    @cached_property
    def residual(self) -> float:
        """Response tokens that a sequence has on average at a random step of its life."""
        total = float(self.ends.sum())
        return float(np.square(self.ends).sum()) / (2 * total) if total else 0.0

    @cached_property
    def token_bytes(self) -> float:
        """Bytes of a device's cache for one token; latent caches are not split by tp."""
        shape = self.layout.shape
        cached = shape.attention_layers * shape.kv_width * self.layout.stage
        return cached * self.steps.formats.cache / split_of(self.layout)

    @cached_property
    def sequence_tokens(self) -> float:
        """Cache that a sequence needs when many run: at the worst moment of a common start."""
        shared = self.work.group if self.layout.traits.paged else 1
        prompt = self.work.prompt_tokens / max(1, shared)
        if self.layout.traits.reserves:
            return prompt + float(self.ends[-1])
        together = float(np.max(self.rows * (prompt + self.ends)))
        return max(together, prompt + self.residual)

    @cached_property
    def capacity(self) -> float:
        """Bytes that the device leaves to the cache; negative where the weights do not fit."""
        layout, memory = self.layout, self.layout.hardware.memory
        fixed = self.steps.held_bytes + layout.constants.process + layout.traits.workspace
        fixed += self.kept
        if layout.traits.rest:
            return layout.traits.rest * (memory - fixed)
        return CACHE_LIMIT * memory - fixed

    @cached_property
    def slots(self) -> int:
        """Sequences decoded together: as many as fit where the engine sees to that."""
        chosen = self.layout.settings.micro_batch or self.layout.traits.slots
        if self.layout.traits.paged:
            need = self.sequence_tokens * self.token_bytes + self.logits_bytes
            chosen = min(chosen, max(1, int(self.capacity / need)))
        return min(self.sequences, chosen)

    @cached_property
    def logits_bytes(self) -> float:
        """Of one sequence in a step, in the weights' format and in float32."""
        layout = self.layout
        return layout.shape.vocab * (layout.element + 4) / layout.parallel.tp

    @cached_property
    def cache_bytes(self) -> float:
        """Of the device's cache; at least one sequence of full length."""
        longest = self.work.prompt_tokens + float(self.ends[-1])
        return max(self.slots * self.sequence_tokens, longest) * self.token_bytes

    @cached_property
    def waves(self) -> float:
        """How often the places are taken: whole times by sequences of one length, which end
        together; spread out by those of many."""
        times = self.sequences / self.slots
        spread = float(self.ends[-1] - self.ends[0]) / max(1.0, self.work.response.mean)
        return times + (math.ceil(times) - times) * max(0.0, 1 - spread)

    def parts(self) -> Parts:
        """Seconds by cause of the chunk."""
        parts = self._refilled() if self.layout.traits.paged else self._batched()
        if self.work.cuts:
            parts[PREFILL] += self.work.cuts * self._again()
        if self.work.speculative:
            drafted = self.work.speculative.tokens * self.work.speculative.cost
            steps = sum(seconds for cause, seconds in parts.items() if cause != PREFILL)
            parts["draft"] = drafted * steps
        return parts

    def _refilled(self) -> Parts:
        """Places are refilled until none waits, then the last batch drains.

        The first column is a step at a full batch, the second the same with prompts along.
        """
        waves = self.waves
        batch = self.sequences / waves
        table = np.zeros((4, len(self.ends) + 3))
        counts, load = table[0], Load(*table[1:])
        counts[0] = (waves - 1) * self.work.response.mean
        load.batch[:2] = batch
        load.context[:2] = self._context(self.residual)
        self._last(table[:, 2:], batch, waves)
        load.tokens[1] = room = self._room(batch, waves)
        counts /= self._kept
        reads = self._unread(batch, waves) / room if room else 0.0
        # Where reading prompts takes more steps than decoding does, sequences end before all
        # places are full.
        late = max(1.0, reads / max(1.0, float(counts.sum())))
        counts *= late
        table[1] /= late
        seconds = self.steps.seconds(load)
        more = seconds.total[1] - seconds.total[0]
        talk = seconds.talk[1] - seconds.talk[0]
        return self._summed(seconds, counts, reads * (more - talk), reads * talk)

    def _batched(self) -> Parts:
        """Batches that start and end together, one after another; prompts are read before.

        The first column is a step that reads prompts.
        """
        whole, rest = divmod(self.sequences, self.slots)
        size = len(self.ends) + 1
        table = np.zeros((4, 1 + 2 * size))
        counts, load = table[0], Load(*table[1:])
        self._last(table[:, 1 : size + 1], self.slots, 1)
        counts *= whole
        if rest:
            self._last(table[:, size + 1 :], rest, 1)
        unread = self._unread(self.slots, 1, self.sequences / self.slots)
        calls = math.ceil(unread / self._room(0, 1)) if unread else 0
        load.tokens[0] = unread / max(1, calls)
        seconds = self.steps.seconds(load)
        once = seconds.total[0] - seconds.talk[0]
        once -= self.layout.host * self.layout.traits.step_s
        counts /= self._kept
        return self._summed(seconds, counts, calls * once, calls * seconds.talk[0])

    def _summed(self, seconds: Seconds, counts: Array, prefill: float, talk: float) -> Parts:
        parallel = self.layout.parallel
        parts = {
            PREFILL: float(prefill),
            "decode": float(counts @ seconds.busy),
            "launch": float(counts @ seconds.waits),
        }
        if parallel.devices > parallel.dp or parallel.ep > 1:
            parts["tp communication"] = float(counts @ seconds.talk + talk)
        return parts

    def _context(self, response: float) -> float:
        return self.work.prompt_tokens + response

    @property
    def _kept(self) -> float:
        """Tokens of a sequence that a step yields."""
        return self.work.speculative.kept if self.work.speculative else 1.0

    def _room(self, batch: float, waves: float) -> float:
        """Tokens of prompts in a step that reads some: of those that can start together.

        An engine that cuts prompts fills the step with them; of whole prompts it takes those that
        fit beside `batch` sequences.
        """
        room = self.tokens or self.layout.traits.tokens
        prompt = self.work.prompt_tokens
        if self.layout.traits.paged and not self.layout.traits.chunked and prompt:
            room = max(1, (room - batch) // prompt) * prompt
        return min(room, self.prompts * prompt / waves)

    def _unread(self, batch: float, waves: float, times: float = 1.0) -> float:
        """Tokens to read: all prompts, and what those had that were carried over into the last
        batch, or into each of `times` batches."""
        cut, left = self._cut(waves)
        return self.prompts * self.work.prompt_tokens + left * batch * times * self._context(cut)

    def _again(self) -> float:
        """Seconds to read, in calls of their own, what all have that are under way when weights
        come: prompts, and responses as they are at a random step of their lives."""
        shared = self.work.group if self.layout.traits.paged else 1
        tokens = self.slots * (self.work.prompt_tokens / max(1, shared) + self.residual)
        room = min(tokens, self.tokens or self.layout.traits.tokens)
        steps = replace(self.steps, prompt=self._context(self.residual))
        call = steps.seconds(Load(np.zeros(1), np.zeros(1), np.array([room])))
        return tokens / room * float(call.total[0])

    def _cut(self, waves: float) -> tuple[float, float]:
        """At which length the last of `waves` equal batches stops, and what share of it is left."""
        left = min(1.0, (1 - self.work.finish) * waves)
        ended = math.ceil((1 - left) * len(self.ends) - 1e-9)
        if ended == len(self.ends):
            return float(self.ends[-1]), 0.0
        return float(self.ends[max(0, ended - 1)]), 1 - ended / len(self.ends)

    def _last(self, table: Array, batch: float, waves: float) -> None:
        """Fill in the steps of the last batch: counts, sequences, and how far back they look.

        First what was carried over into it, at full places; then how it drains. Of `batch`
        sequences, some are alive with probability 1 - (1 - share) ** batch; only then is there a
        step, with the expected number that are.
        """
        cut, left = self._cut(waves)
        counts, together, context, _tokens = table
        ends = self.ends
        if left:
            over = np.maximum(0.0, ends - cut)
            counts[0], together[0] = over.mean(), batch
            context[0] = self._context(cut + counts[0] / left / 2)
            ends = np.minimum(ends, cut)
        counts[1], counts[2:] = ends[0], np.diff(ends)
        some = 1 - (1 - self.alive) ** batch
        context[1:] = self._context(0) + ends - counts[1:] / 2
        counts[1:] *= some
        np.minimum(batch, batch * self.rows / some, out=together[1:])
