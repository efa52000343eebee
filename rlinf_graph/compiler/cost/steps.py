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

from rlinf_graph.compiler.cost.decode_constants import DecodeConstants
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.served import Formats, peak

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
        host: the host works for it, whether the device waits or not.
        waits: of that, what the device waits for.
    """

    busy: Array
    talk: Array
    host: Array
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
    """

    layout: Layout
    formats: Formats
    prompt: float
    drafted: int = 0

    @property
    def constants(self) -> DecodeConstants:
        """Of the kind of device."""
        return self.layout.constants.decoding

    def seconds(self, load: Load) -> Seconds:
        """Of each kind of step.

        With pp, `pp` micro-batches follow one another through the stages, so each stage reads its
        weights `pp` times a step and the whole takes as long as one device with all layers would.
        """
        layout, turns = self.layout, self.layout.parallel.pp
        batch, tokens = load.batch / turns, load.tokens / turns
        rows = batch * (1 + self.drafted) + tokens
        compute, moved = self._operators(batch, load.context, tokens, rows)
        if self.constants.apart:
            busy = np.sum(self._blended(compute, moved), axis=0)
        else:
            busy = np.maximum(compute.sum(axis=0), moved.sum(axis=0))
        busy = turns * (busy + self._fixed)
        talk = turns * self._talk(rows)
        host = turns * self._launches(load.tokens) + self._sequence * load.batch
        if layout.constants.overlap:
            device = busy + talk
            waits = self._blended(device, host) - device
        else:
            waits = host
        return Seconds(busy, talk, host, waits + layout.host * layout.traits.step_s)

    def _blended(self, one: Array, other: Array) -> Array:
        power = self.constants.blend
        if math.isinf(power):
            return np.maximum(one, other)
        return (one**power + other**power) ** (1 / power)

    def _operators(self, batch: Array, context: Array, tokens: Array, rows: Array):
        """Seconds by operations alone and by memory alone; a row each for matrices, experts,
        attention, the head with sampling, and what lies between products."""
        made, kept = self._rates, self._sizes
        wasted = self.constants.rows
        asked = batch * (1 + self.drafted)
        heads = asked + tokens / max(1.0, self.prompt)
        looking = self.layout.shape.decode_attention_flops(context) * asked * self._share
        reading = self.layout.shape.cached(context) * batch * kept.cache
        compute = np.stack(
            (
                made.matrices * (rows + wasted),
                made.experts * (rows + wasted * made.spread),
                made.decode * looking + made.prompt * tokens,
                made.head * (heads + wasted),
                np.zeros_like(rows),
            )
        )
        moved = np.stack(
            (
                np.full_like(rows, kept.matrices),
                kept.experts * (1 - made.missed ** (rows * self.layout.parallel.ep)),
                reading,
                kept.head + kept.logits * heads,
                kept.hidden * rows,
            )
        )
        return compute, moved / self._bandwidth

    @cached_property
    def _bandwidth(self) -> float:
        return self.layout.hardware.memory_bandwidth * self.constants.bandwidth

    @cached_property
    def _share(self) -> float:
        """Of the layers and their heads, what one device has."""
        return self.layout.stage / self.layout.parallel.tp

    @cached_property
    def _attention_weights(self) -> float:
        """Of attention and recurrent layers, of one device."""
        shape = self.layout.shape
        mixers = shape.mixer.layers * shape.mixer.matrices(shape.hidden) if shape.mixer else 0
        return (shape.attention_layers * shape.attention_matrices + mixers) * self._share

    @cached_property
    def _expert_weights(self) -> float:
        """Of routed experts, of one device."""
        return self.layout.shape.expert_matrices * self._share / self.layout.parallel.ep

    @cached_property
    def _dense_weights(self) -> float:
        """Of the other feed-forward layers, of one device."""
        return self.layout.shape.dense_matrices * self._share - self._attention_weights

    @cached_property
    def held_bytes(self) -> float:
        """Weights that a device keeps; norms and biases, and both ends, in the format of those."""
        layout, formats = self.layout, self.formats
        body = self._attention_weights + self._dense_weights + self._expert_weights
        rest = max(0.0, layout.held_weights - body)
        held = formats.attention * self._attention_weights + formats.ends * rest
        return held + formats.feed_forward * (self._dense_weights + self._expert_weights)

    @cached_property
    def _sizes(self) -> _Sizes:
        layout, shape, formats = self.layout, self.layout.shape, self.formats
        split = 1 if shape.kv_rank else min(layout.parallel.tp, shape.kv_heads)
        visits = shape.expert_layers * shape.experts_per_token / 2
        return _Sizes(
            matrices=formats.attention * self._attention_weights
            + formats.feed_forward * self._dense_weights,
            experts=formats.feed_forward * self._expert_weights,
            cache=layout.stage * formats.cache * layout.traits.cache_touches / split,
            head=shape.head_matrix(layout.head) * formats.ends * self._share,
            logits=layout.traits.logit_bytes * shape.vocab / layout.parallel.tp,
            hidden=self.constants.moves
            * (shape.layers + visits)
            * shape.hidden
            * layout.element
            * layout.stage,
        )

    @cached_property
    def _rates(self) -> _Rates:
        layout, shape, known = self.layout, self.layout.shape, self.constants
        flops, formats = layout.hardware.flops, self.formats

        def second(product: str, share: float = 1.0) -> float:
            reached = peak(flops, product) * known.matmul * share
            return reached * (known.float4 if product == "float4" else 1.0)

        visited = shape.expert_layers * shape.experts_per_token * shape.expert * self._share
        busiest = 1 + known.imbalance if layout.parallel.ep > 1 else 1.0
        wide = "bfloat16" if formats.attention_product in ("float8", "float4") else None
        prompt = shape.causal_flops(self.prompt, self.prompt**2) + shape.image_flops(1)
        prompt = prompt / max(1.0, self.prompt) + shape.scan_flops
        return _Rates(
            matrices=2 * self._attention_weights / second(formats.attention_product)
            + 2 * self._dense_weights / second(formats.feed_forward_product),
            experts=2 * busiest * visited / second(formats.feed_forward_product, known.grouped),
            spread=shape.experts / (layout.parallel.ep * max(1, shape.experts_per_token)),
            missed=1 - shape.experts_per_token / max(1, shape.experts),
            decode=1 / second(formats.cache_product, known.attention),
            prompt=prompt * self._share / second(wide or formats.attention_product),
            head=2
            * shape.head_matrix(layout.head)
            * self._share
            / second("bfloat16" if formats.ends == 2 else formats.attention_product),
        )

    @cached_property
    def _layers(self) -> float:
        """Layers of a stage; hybrids have layers of one part, of which two count for one."""
        shape = self.layout.shape
        mixers = shape.mixer.layers if shape.mixer else 0
        parts = shape.attention_layers + mixers + shape.feed_forward_layers
        return shape.launches * parts / 2 * self.layout.stage

    @cached_property
    def _fixed(self) -> float:
        """Routing, sorting and adding up take as many kernels again as the rest of a layer."""
        return self.constants.floor * (
            self._layers + self.layout.shape.expert_layers * self.layout.stage
        )

    @cached_property
    def _sequence(self) -> float:
        return self.layout.host * self.constants.sequence if self.layout.traits.graphs else 0.0

    def _launches(self, tokens: Array) -> Array:
        """Host seconds to issue the layers: those of steps that only decode may be one graph."""
        if self.layout.traits.graphs:
            return self.layout.host * self.constants.launch * self._layers * (tokens > 0)
        return np.full_like(tokens, self.layout.host * self.layout.traits.layer_s * self._layers)

    def _talk(self, rows: Array) -> Array:
        """Communication of one turn through a stage."""
        layout, shape, parallel = self.layout, self.layout.shape, self.layout.parallel
        hidden = rows * (shape.hidden * layout.element)
        talk = np.zeros_like(rows)
        if parallel.tp > 1:
            reduces = 2 * self._layers
            talk = talk + reduces * layout.hardware.tensor.all_reduce(hidden)
        if parallel.ep > 1:
            sent = hidden * (min(shape.experts_per_token, parallel.ep) / parallel.tp)
            exchanges = 2 * shape.expert_layers * layout.stage
            talk = talk + exchanges * layout.hardware.experts.all_to_all(sent)
        return talk


@dataclass(frozen=True)
class _Sizes:
    """Bytes: of weights, of a cached element on this device, for an output, for a row."""

    matrices: float
    experts: float
    cache: float
    head: float
    logits: float
    hidden: float


@dataclass(frozen=True)
class _Rates:
    """Seconds of operations: for a row, for an operation of attention, for a prompt's token.

    `spread` is the number of experts by how many a token visits, `missed` the probability that it
    does not visit one.
    """

    matrices: float
    experts: float
    spread: float
    missed: float
    decode: float
    prompt: float
    head: float
