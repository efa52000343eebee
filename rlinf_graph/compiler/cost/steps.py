"""Seconds of one step of an inference engine: some sequences decode, some prompts are read.

Each operator takes the slower of its operations and of what it moves through memory (Williams et
al. 2009, the roofline), with

- weights read once a step, of the experts those that any token of the step chose: of E experts,
  k a token, E (1 - (1 - k/E)^n) by n tokens;
- products that waste a fixed number of rows (tiles that are not full, pipelines that fill);
- keys and values of every sequence, within its window; latents under MLA, which decoding
  multiplies as they are (DeepSeek-AI 2024, DeepSeek-V2, section 2.1, with absorbed projections);
- logits of one position of each sequence;
- a fixed time for each layer's kernels, which small reads cannot go below;
- messages between tensor ranks (Shoeybi et al. 2019) and between the ranks of the experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rlinf_graph.compiler.cost.coefficients import Coefficients, coefficients_of
from rlinf_graph.compiler.cost.kernels import Surface
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.served import Formats

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Load:
    """What steps work on: one entry a kind of step, amounts of one replica.

    Attributes:
        batch: sequences that decode.
        context: tokens that each of them looks back at, on average.
        tokens: of prompts, that are read along.
    """

    batch: Array
    context: Array
    tokens: Array


@dataclass(frozen=True)
class Seconds:
    """Of each kind of step.

    Attributes:
        busy: a device computes or moves memory.
        talk: it exchanges messages.
        waits: it waits for the host.
    """

    busy: Array
    talk: Array
    waits: Array

    @property
    def total(self) -> Array:
        """From the begin of a step to the begin of the next."""
        return self.busy + self.talk + self.waits


@dataclass(frozen=True)
class Steps:
    """A model on its devices, step by step.

    Attributes:
        layout: of the model.
        formats: of its weights and its cache.
        prompt: tokens of a prompt.
        drafted: tokens of each sequence in a step besides the last one, under speculation.
        measured: what takes the place of the roofline; None without.
    """

    layout: Layout
    formats: Formats
    prompt: float
    drafted: int = 0
    measured: Surface | None = None

    @cached_property
    def coefficients(self) -> Coefficients:
        """Of one device."""
        return coefficients_of(self.layout, self.formats, self.prompt)

    @property
    def held_bytes(self) -> float:
        """Weights that a device keeps; norms and biases in the format of embedding and head."""
        made = self.coefficients
        rest = max(0.0, self.layout.held_weights - made.weights)
        return made.held + self.formats.ends * rest

    def seconds(self, load: Load) -> Seconds:
        """Of each kind of step.

        With pp, `pp` micro-batches follow one another through the stages, so each stage reads its
        weights `pp` times a step and the whole takes as long as one device with all layers would.
        """
        layout, made = self.layout, self.coefficients
        busy, talk = self._measured(load) if self.measured else self._estimated(load)
        issued = np.where(load.tokens > 0, made.launches, 0.0) if made.replayed else made.launches
        host = layout.parallel.pp * issued + made.sequence * load.batch
        device = busy + talk
        waits = self._blended(device, host) - device if layout.constants.overlap else host
        return Seconds(busy, talk, waits + layout.host * layout.traits.step_s)

    def _measured(self, load: Load) -> tuple[Array, Array]:
        """Seconds of a device, messages among them: of decoding, and of reading the prompts."""
        surface = self.measured
        if surface is None:
            raise ValueError("nothing was measured")
        read = [surface.prefill(tokens, self.prompt) for tokens in load.tokens.tolist()]
        busy = surface.decode(load.batch, load.context) + np.asarray(read)
        return busy, np.zeros_like(busy)

    def _estimated(self, load: Load) -> tuple[Array, Array]:
        """Seconds that a device works, and that it exchanges messages."""
        turns, known = self.layout.parallel.pp, self.layout.constants.decoding
        batch, tokens = load.batch / turns, load.tokens / turns
        asked = batch * (1 + self.drafted)
        compute, moved = self._operators(batch, load.context, tokens, asked)
        if known.apart:
            busy = self._blended(compute, moved).sum(axis=0)
        else:
            busy = np.maximum(compute.sum(axis=0), moved.sum(axis=0))
        return turns * (busy + self.coefficients.fixed), turns * self._talk(asked + tokens)

    def _blended(self, one: Array, other: Array) -> Array:
        power = self.layout.constants.decoding.blend
        if math.isinf(power):
            return np.maximum(one, other)
        return np.asarray((one**power + other**power) ** (1 / power), dtype=np.float64)

    def _operators(
        self, batch: Array, context: Array, tokens: Array, asked: Array
    ) -> tuple[Array, Array]:
        """Seconds by operations alone and by memory alone; a row each for matrices, experts,
        attention, the head with sampling, and what lies between products."""
        made, shape = self.coefficients, self.layout.shape
        rows, heads = asked + tokens, asked + tokens / max(1.0, self.prompt)
        wasted = self.layout.constants.decoding.rows
        compute, moved = np.zeros((2, 5, len(rows)))
        compute[0] = made.matrices * (rows + wasted)
        compute[2] = made.decode * shape.decode_attention_flops(context) * asked * self._share
        compute[2] += made.prompt * tokens
        compute[3] = made.head * (heads + wasted)
        moved[0] = made.read_matrices
        if shape.experts:
            compute[1] = made.experts * (rows + wasted * made.spread)
            moved[1] = made.read_experts * (1 - made.missed ** (rows * self.layout.parallel.ep))
        moved[2] = made.cached * shape.cached(context) * batch
        moved[3] = made.read_head + made.logits * heads
        moved[4] = made.moved * rows
        return compute, moved

    @property
    def _share(self) -> float:
        """Of the layers and their heads, what one device has."""
        return self.layout.stage / self.layout.parallel.tp

    def _talk(self, rows: Array) -> Array:
        """Communication of one turn through a stage."""
        layout, shape, parallel = self.layout, self.layout.shape, self.layout.parallel
        hidden = rows * (shape.hidden * layout.element)
        talk = np.zeros_like(rows)
        if parallel.tp > 1:
            talk += 2 * self.coefficients.layers * layout.hardware.tensor.all_reduce(hidden)
        if parallel.ep > 1:
            sent = hidden * (min(shape.experts_per_token, parallel.ep) / parallel.tp)
            exchanges = 2 * shape.expert_layers * layout.stage
            talk += exchanges * layout.hardware.experts.all_to_all(sent)
        return talk
