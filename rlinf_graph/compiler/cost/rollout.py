"""Sampling: prefill, then decode steps summed over the distribution of response lengths.

The batch shrinks as sequences end, so a step late in the tail costs almost as much as a full one
and yields a few tokens: a model of the mean length would be wrong by construction. Where the
key-value cache does not hold every sequence at once, those that wait take the places that become
free (engines that page their cache) or run in a later batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rlinf_graph.compiler.cost.constants import PACKED_TOKENS
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.packed import Packed
from rlinf_graph.compiler.cost.passes import Parts, added, per_rank, scaled
from rlinf_graph.ir.work import Generate

Array = npt.NDArray[np.float64]

CACHE_LIMIT = 0.9
"""Share of a device's memory that weights and key-value cache may take together, as vLLM has it."""


@dataclass(frozen=True)
class Rollout:
    """One chunk of a node's sampling on one replica.

    Attributes:
        layout: of the model.
        work: of the whole node.
        kept: bytes that other nodes keep on the device, which the cache cannot have.
    """

    layout: Layout
    work: Generate
    kept: float = 0.0

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
        shape, parallel = self.layout.shape, self.layout.parallel
        split = 1 if shape.kv_rank else min(parallel.tp, shape.kv_heads)
        return shape.layers * self.layout.stage * shape.kv_width * self.layout.element / split

    @cached_property
    def sequence_tokens(self) -> float:
        """Cache that a sequence needs when many run: at the worst moment of a common start."""
        shared = self.work.group if self.layout.traits.paged else 1
        prompt = self.work.prompt_tokens / max(1, shared)
        together = float(np.max(self.rows * (prompt + self.ends)))
        return max(together, prompt + self.residual)

    @cached_property
    def capacity(self) -> float:
        """Bytes that the device leaves to the cache; negative where the weights do not fit."""
        layout = self.layout
        fixed = layout.held_weights * layout.element + layout.constants.process + self.kept
        return CACHE_LIMIT * layout.hardware.memory - fixed

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

    def parts(self) -> Parts:
        """Seconds by cause of the chunk."""
        return added(self._prefill(), self._decode())

    def _prefill(self) -> Parts:
        """All prompts, in calls of at most `PACKED_TOKENS`; logits of the last position only."""
        layout, prompt, parallel = self.layout, self.work.prompt_tokens, self.layout.parallel
        if not prompt:
            return {}
        tokens = self.prompts * prompt
        batch = Packed(self.prompts, tokens, tokens * prompt, self.prompts)
        calls = math.ceil(tokens / PACKED_TOKENS)
        shape = layout.shape
        flops = shape.forward_flops(batch.tokens, batch.squares, batch.outputs, layout.head)
        flops += shape.image_flops(self.prompts)
        read = calls * layout.replica_weights * layout.element / layout.bandwidth
        parts = {"prefill": max(flops * layout.stage / parallel.tp / layout.flops, read)}
        if parallel.tp > 1:
            sent = tokens * shape.hidden * layout.element / calls
            reduces = calls * shape.layers * layout.stage * 2
            parts["tp communication"] = reduces * layout.hardware.tensor.all_reduce(sent)
        launch = layout.launch_s(calls)
        if layout.constants.overlap:
            launch = max(0.0, launch - sum(parts.values()))
        return parts | {"launch": launch}

    def _decode(self) -> Parts:
        """All steps: those at a full batch while others wait, then the drain of the last."""
        total, slots = self.sequences, self.slots
        if total <= slots:
            return self._drain(total)
        if not self.layout.traits.paged:
            whole, rest = divmod(total, slots)
            last = self._drain(rest) if rest else {}
            return added(scaled(self._drain(slots), whole), last)
        steps = np.asarray([(total - slots) * float(self.ends.mean()) / slots])
        context = np.asarray([self.work.prompt_tokens + self.residual])
        full = self._steps(steps, np.asarray([float(slots)]), context)
        return added(full, self._drain(slots))

    def _drain(self, count: int) -> Parts:
        """Until the last of `count` sequences that start together has ended.

        Of `count` sequences, some are alive with probability 1 - (1 - share) ** count; only then
        is there a step, with the expected number that are.
        """
        begins = np.concatenate(([0.0], self.ends[:-1]))
        some = 1 - (1 - self.alive) ** count
        steps = (self.ends - begins) * some
        batch = np.minimum(count, count * self.rows / some)
        return self._steps(steps, batch, self.work.prompt_tokens + (self.ends + begins) / 2)

    def _steps(self, steps: Array, batch: Array, context: Array) -> Parts:
        """Seconds by cause of decode steps: how many, at which batch and which mean context.

        With pp, `pp` micro-batches follow one another through the stages, so each stage reads its
        weights `pp` times a step and the whole takes as long as one device with all layers would.
        """
        layout, parallel, shape = self.layout, self.layout.parallel, self.layout.shape
        turns = parallel.pp
        device = batch / turns
        flops = 2.0 * (shape.active_matrices + shape.head_matrix(layout.head)) * device
        flops = flops + shape.decode_attention_flops(1.0) * context * device
        compute = flops * layout.stage / parallel.tp / layout.flops
        moved = layout.traits.cache_touches * self.token_bytes * context
        moved = moved + layout.traits.logit_bytes * shape.vocab / parallel.tp
        read = self._weight_bytes(device) + moved * device
        busy = turns * np.maximum(compute, read / layout.bandwidth)
        talk = turns * self._talk(device)
        launch = turns * layout.launch_s()
        if layout.constants.overlap:
            idle = np.maximum(0.0, launch - busy - talk)
        else:
            idle = np.full_like(busy, launch)
        idle = idle + layout.traits.step_s + layout.traits.sequence_s * batch
        parts = {"decode": float(np.dot(steps, busy)), "launch": float(np.dot(steps, idle))}
        if parallel.devices > parallel.dp or parallel.ep > 1:
            parts["tp communication"] = float(np.dot(steps, talk))
        return parts

    def _weight_bytes(self, batch: Array) -> Array:
        """Weights read in a step: of the experts those that any token of the batch chose."""
        layout, shape, parallel = self.layout, self.layout.shape, self.layout.parallel
        experts = shape.expert_matrices * layout.stage / parallel.ep / parallel.tp
        others = layout.replica_weights - experts - shape.vision / parallel.tp
        if not shape.tied:  # a row of the embedding for each sequence, not the matrix
            others -= shape.vocab * shape.hidden / parallel.tp
        chosen = np.zeros_like(batch)
        if shape.experts:
            missed = 1 - shape.experts_per_token / shape.experts
            chosen = experts * (1 - missed ** (batch * parallel.ep))
        return (others + chosen) * layout.element

    def _talk(self, batch: Array) -> Array:
        """Communication of one turn of a step through a stage."""
        layout, shape, parallel = self.layout, self.layout.shape, self.layout.parallel
        hidden = batch * shape.hidden * layout.element
        talk = np.zeros_like(batch)
        if parallel.tp > 1:
            reduces = 2 * shape.layers * layout.stage
            talk = talk + reduces * layout.hardware.tensor.all_reduce(hidden)
        if parallel.ep > 1:
            sent = hidden * shape.experts_per_token / parallel.tp
            exchanges = 2 * shape.expert_layers * layout.stage
            talk = talk + exchanges * layout.hardware.experts.all_to_all(sent)
        return talk
