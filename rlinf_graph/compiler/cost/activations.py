"""Bytes of activations: what a layer keeps of a token for its backward pass, and works with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rlinf_graph.compiler.cost.keeps import Keeps
from rlinf_graph.compiler.cost.layout import Layout


def activation_bytes(layout: Layout) -> int:
    """Of one activation: as wide as a weight, at least two bytes."""
    return max(2, layout.element)


@dataclass(frozen=True)
class LayerMemory:
    """One layer of a tensor-parallel rank, with attention that never stores its square.

    All figures are bytes of a token. A mixture counts as a layer with experts, of which a token
    passes through those that it visits.

    Attributes:
        layout: of the model.
        keeps: what the engine keeps.
    """

    layout: Layout
    keeps: Keeps

    @cached_property
    def element(self) -> int:
        """Of one activation."""
        return activation_bytes(self.layout)

    @cached_property
    def whole(self) -> float:
        """Kept when nothing is recomputed.

        Of each of two norms its input in float32, the normalized input and its product with the
        weight; queries, keys and values; the output of attention and a float32 sum for each head;
        gate, its activation, up and their product. Fused kernels keep neither the float32 copy nor
        the activation. A norm of queries and keys keeps two more.
        Every expert a token visits keeps its own input and output, and the router three copies of
        its scores.
        """
        shape, e = self.layout.shape, self.element
        fused = self.keeps.fused
        wide = 0 if fused else max(4, e)
        norms = 2 * shape.hidden * (e + (e + wide) / self._sequence)
        attention = (self._queries + self._keys + shape.value_width) * e + 4 * shape.heads
        if shape.qk_norm:
            attention += (shape.query_width + shape.kv_width / 2) * (wide + e)
        experts = shape.experts_per_token * 2 * shape.hidden * e + 10 * shape.experts
        inner = norms + (attention + (3 if fused else 4) * self._wide * e) / self.layout.parallel.tp
        return inner + (experts / self._sequence if shape.experts else 0.0)

    @cached_property
    def selective(self) -> float:
        """Kept when what stands between products is recomputed, and every second product.

        The layer's input, queries, values, the output of attention, the gate, and that of the last
        product where the engine keeps it: the policy of torchtitan's selective activation
        checkpointing by operator.
        """
        shape, e = self.layout.shape, self.element
        halves = self._queries + self._values + shape.value_width + self._wide
        ends = shape.hidden * (2 if self.keeps.last_product else 1)
        kept = (halves * e + 4 * shape.heads) / self.layout.parallel.tp
        return min(self.whole, kept + ends * e / self._sequence)

    @cached_property
    def full(self) -> float:
        """Kept when the whole layer is recomputed: its input."""
        return self.layout.shape.hidden * self.element / self._sequence

    @property
    def kept(self) -> float:
        """In the plan's mode of recomputation."""
        recompute = self.layout.settings.recompute
        if recompute == "selective":
            return self.selective
        return min(self.whole, self.full) if recompute else self.whole

    @cached_property
    def gradients(self) -> float:
        """Of the layer at work: of gate, up and their product, and two at the norm's output."""
        inner = 3 * self._wide / self.layout.parallel.tp
        return (2 * self.layout.shape.hidden + inner) * self.element

    @cached_property
    def forward(self) -> float:
        """At once without a backward pass: four hidden and two feed-forward widths."""
        shape = self.layout.shape
        return (4 * shape.hidden + 2 * self._wide / self.layout.parallel.tp) * self.element

    @cached_property
    def gathered(self) -> float:
        """Keys and values of the other context-parallel ranks, and their gradients."""
        cp = self.layout.parallel.cp
        return 2 * (cp - 1) * self._keys * self.element / self.layout.parallel.tp

    @cached_property
    def exchanged(self) -> float:
        """Copies that expert ranks send and receive of a token."""
        shape = self.layout.shape
        if self.layout.parallel.ep == 1:
            return 0.0
        return 2 * shape.experts_per_token * shape.hidden * self.element / self._sequence

    @property
    def _sequence(self) -> int:
        return self.layout.parallel.tp if self.keeps.by_sequence else 1

    @property
    def _queries(self) -> int:
        return self.layout.shape.query_width

    @cached_property
    def _keys(self) -> int:
        """Keys and values that attention reads: latent attention makes them for every head."""
        shape = self.layout.shape
        if self.keeps.repeats or shape.kv_rank:
            return shape.query_width + shape.value_width
        return shape.kv_width

    @property
    def _values(self) -> float:
        """Of a layer's second half of keys and values, before any repetition."""
        shape = self.layout.shape
        return shape.kv_rank if shape.kv_rank else shape.kv_width / 2

    @cached_property
    def _wide(self) -> int:
        shape = self.layout.shape
        if not shape.experts:
            return shape.intermediate
        visited = shape.experts_per_token + shape.shared_experts
        return visited * shape.expert_intermediate
