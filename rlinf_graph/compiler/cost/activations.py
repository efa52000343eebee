"""Bytes of activations: what a layer keeps of a token for its backward pass, and works with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

from rlinf_graph.compiler.cost.keeps import Keeps
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.shapes import ModelShape


def activation_bytes(layout: Layout) -> int:
    """Of one activation: as wide as a weight, at least two bytes."""
    return max(2, layout.element)


def layer_memory(layout: Layout, keeps: Keeps) -> LayerMemory:
    """One layer of a layout. Layouts that differ in other things share it."""
    settings, element = layout.settings, activation_bytes(layout)
    tp, cp, ep = settings.parallel.tp, settings.parallel.cp, settings.parallel.ep
    return _layer_memory(layout.shape, keeps, element, tp, cp, ep, settings.recompute)


@dataclass(frozen=True)
class LayerMemory:
    """One layer of a tensor-parallel rank, with attention that never stores its square.

    All figures are bytes of a token in the average layer: of layers that differ, attention, dense
    and expert feed-forward parts and recurrent mixers count by their share. What a recurrent
    layer's kernel keeps of its state is left out.

    Attributes:
        shape: of the model.
        keeps: what the engine keeps.
        element: bytes of one activation.
        tp, cp, ep: ranks that share the layer.
        recompute: the plan's mode of recomputation.
    """

    shape: ModelShape
    keeps: Keeps
    element: int
    tp: int
    cp: int
    ep: int
    recompute: bool | Literal["selective"]

    @cached_property
    def whole(self) -> float:
        """Kept when nothing is recomputed.

        Of a norm its input in float32, the normalized input and its product with the weight;
        queries, keys and values; the output of attention and a float32 sum for each head; gate,
        its activation, up and their product. Fused kernels keep neither the float32 copy nor the
        activation. A norm of queries and keys keeps two more. Every expert a token visits keeps
        its own input, and without fused kernels its output; the router three copies of its scores.
        """
        shape, e = self.shape, self.element
        wide = 0 if self.keeps.fused else max(4, e)
        parts = shape.attention_layers + shape.feed_forward_layers + self._mixers
        norms = parts / shape.layers * (2 if shape.post_norms else 1)
        outside = norms * shape.hidden * (e + (e + wide) / self._sequence)
        inside = self._attention(wide) + self._inner(self.keeps.fused) * e + self._mixed * e
        return outside + inside / self.tp + self._routed / self._sequence

    def _attention(self, wide: int) -> float:
        """Between the norm and the output's product, of the average layer."""
        shape, e = self.shape, self.element
        queries = shape.query_width * (4 if shape.output_gate else 1)
        kept = (queries + self._keys + shape.value_width) * e + 4 * shape.heads
        if shape.qk_norm:
            kept += (shape.query_width + shape.kv_width / 2) * (wide + e)
        return kept * shape.attention_layers / shape.layers

    def _inner(self, fused: bool) -> float:
        """Elements between a feed-forward part's products, of the average layer."""
        steps = (3 if fused else 4) if self.shape.gated else 2
        return steps * self._wide

    @cached_property
    def _mixers(self) -> int:
        mixer = self.shape.mixer
        return mixer.layers if mixer else 0

    @cached_property
    def _mixed(self) -> float:
        """Elements of recurrent layers: around the convolution, and values, gate and output."""
        mixer, layers = self.shape.mixer, self.shape.layers
        if mixer is None:
            return 0.0
        return (2 * mixer.convolved + 3 * mixer.values) * mixer.layers / layers

    @cached_property
    def _routed(self) -> float:
        """Inputs and outputs of the experts that a token visits, and scores of all."""
        shape, fused = self.shape, self.keeps.fused
        ends = (1 if fused else 2) * (shape.latent or shape.hidden) * self.element
        kept = shape.experts_per_token * ends + 10 * shape.experts
        return kept * shape.expert_layers / shape.layers

    @cached_property
    def selective(self) -> float:
        """Kept when what stands between products is recomputed, and every second product.

        The layer's input, queries, values, the output of attention, the gate, and that of the last
        product where the engine keeps it: the policy of torchtitan's selective activation
        checkpointing by operator.
        """
        shape, e = self.shape, self.element
        attention = (self._queries + self._values + shape.value_width) * e + 4 * shape.heads
        halves = attention * shape.attention_layers / shape.layers + (self._wide + self._mixed) * e
        ends = shape.hidden * (2 if self.keeps.last_product else 1)
        kept = halves / self.tp
        return min(self.whole, kept + ends * e / self._sequence)

    @cached_property
    def full(self) -> float:
        """Kept when the whole layer is recomputed: its input."""
        return self.shape.hidden * self.element / self._sequence

    @cached_property
    def kept(self) -> float:
        """In the plan's mode of recomputation."""
        if self.recompute == "selective":
            return self.selective
        return min(self.whole, self.full) if self.recompute else self.whole

    @cached_property
    def gradients(self) -> float:
        """Of the layer at work: of gate, up and their product, and two at the norm's output."""
        inner = (3 if self.shape.gated else 2) * self._wide / self.tp
        return (2 * self.shape.hidden + inner) * self.element

    @cached_property
    def forward(self) -> float:
        """At once without a backward pass: four hidden and two feed-forward widths."""
        shape = self.shape
        return (4 * shape.hidden + 2 * self._wide / self.tp) * self.element

    @cached_property
    def gathered(self) -> float:
        """Keys and values of the other context-parallel ranks, and their gradients."""
        return 2 * (self.cp - 1) * self._keys * self.element / self.tp

    @cached_property
    def exchanged(self) -> float:
        """Copies that expert ranks send and receive of a token."""
        shape = self.shape
        if self.ep == 1:
            return 0.0
        width = shape.latent or shape.hidden
        return 2 * shape.experts_per_token * width * self.element / self._sequence

    @cached_property
    def _sequence(self) -> int:
        return self.tp if self.keeps.by_sequence else 1

    @cached_property
    def _queries(self) -> int:
        return self.shape.query_width

    @cached_property
    def _keys(self) -> int:
        """Keys and values that attention reads: latent attention makes them for every head."""
        shape = self.shape
        if self.keeps.repeats or shape.kv_rank:
            return shape.query_width + shape.value_width
        return shape.kv_width

    @cached_property
    def _values(self) -> float:
        """Of a layer's second half of keys and values, before any repetition."""
        shape = self.shape
        return shape.kv_rank if shape.kv_rank else shape.kv_width / 2

    @cached_property
    def _wide(self) -> float:
        """Width of the average layer's feed-forward part that a token passes through."""
        shape = self.shape
        visited = shape.experts_per_token * shape.expert_intermediate + shape.shared_width
        dense = shape.feed_forward_layers - shape.expert_layers
        return (shape.expert_layers * visited + dense * shape.intermediate) / shape.layers


_layer_memory = cache(LayerMemory)
