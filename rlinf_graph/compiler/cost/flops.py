"""Operations of forward and backward passes together, with parts frozen and with adapters."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.shapes import ModelShape

Product = tuple[int, int, int]
"""Inputs, outputs and layers of a projection."""


@dataclass(frozen=True)
class Adapter:
    """Low-rank adapters beside frozen weights (LoRA).

    Attributes:
        rank: of every adapter.
        projections: that have one: of `q`, `k`, `v`, `o`, `gate`, `up` and `down`. Latent
            attention's two products of queries count as `q`, those of keys and values as `k`.
            Feed-forward names reach dense layers and shared experts, not routed experts.

    Source: Hu et al. 2022.
    """

    rank: int
    projections: tuple[str, ...]

    def width(self, shape: ModelShape) -> int:
        """Inputs and outputs of all adapted projections, of all layers."""
        adapted = [p for name in self.projections for p in projections(shape)[name]]
        return sum((inputs + outputs) * layers for inputs, outputs, layers in adapted)

    def parameters(self, shape: ModelShape) -> int:
        """Trained weights: a matrix before and one behind the rank."""
        return self.rank * self.width(shape)


def projections(shape: ModelShape) -> dict[str, list[Product]]:
    """The products of attention and feed-forward layers by name."""
    hidden, layers = shape.hidden, shape.attention_layers
    found: dict[str, list[Product]] = {"o": [(shape.value_width, hidden, layers)]}
    if shape.kv_rank:
        keys = shape.heads * shape.head_dim + shape.value_width
        inner = shape.q_rank or hidden
        found["q"] = [(inner, shape.query_width, layers)]
        found["q"] += [(hidden, inner, layers)] if shape.q_rank else []
        found |= {"k": [(hidden, shape.kv_width, layers), (shape.kv_rank, keys, layers)], "v": []}
    else:
        gate = 2 if shape.output_gate else 1
        found["q"] = [(hidden, gate * shape.query_width, layers)]
        found |= {name: [(hidden, shape.kv_width // 2, layers)] for name in ("k", "v")}
    dense = shape.feed_forward_layers - shape.expert_layers
    widths = [(shape.intermediate, dense), (shape.shared_width, shape.expert_layers)]
    into = [(hidden, width, count) for width, count in widths if width and count]
    back = [(width, hidden, count) for width, count in widths if width and count]
    return found | {"gate": into if shape.gated else [], "up": into, "down": back}


def training_flops(
    shape: ModelShape,
    tokens: float,
    squares: float,
    outputs: float,
    head: str = "lm",
    images: float = 0,
    adapter: Adapter | None = None,
    towers_trained: bool = False,
) -> float:
    """Operations of forward and backward passes.

    The backward pass of a product with weights is two more products: one for the gradient of
    its input, one for that of the weights, which frozen weights do without. Attention and
    recurrent layers have two operands that both need a gradient.

    Args:
        shape: of the model.
        tokens: of all sequences.
        squares: sum of the squared lengths.
        outputs: positions that go through the head.
        head: `lm`, `value` or `score`.
        images: that the vision towers see.
        adapter: what is trained in place of the weights; None trains them all.
        towers_trained: whether the vision towers are trained too. Frozen ones run forward only:
            nothing before them needs a gradient.
    """
    forward = shape.forward_flops(tokens, squares, outputs, head)
    seen = shape.image_flops(images) * (3 if towers_trained else 1)
    if adapter is None:
        return 3 * forward + seen
    matrices = 2.0 * shape.active_matrices * tokens + 2.0 * shape.head_matrix(head) * outputs
    inputs = 2 * forward - matrices  # of all gradients, those of the weights left out
    adapters = 3 * 2.0 * adapter.parameters(shape) * tokens
    return forward + inputs + adapters + seen
