"""What one forward pass asks of one device, by class of operator: operations and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rlinf_graph.compiler.cost.execution import NARROW, Execution
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.packed import Packed
from rlinf_graph.compiler.cost.shapes import ModelShape


LOGIT = 10.0
"""Bytes moved for a logit in a pass: written, cast to float32, read for its softmax."""


@dataclass(frozen=True)
class Operators:
    """Amounts of one forward pass of a pipeline rank over one micro-batch, on one device.

    Attributes:
        dense: operations of products that every token goes through, without the head's.
        head: operations of the head and of vision towers, which keep the weights' format.
        experts: operations of the products of routed experts.
        width: the smallest dimension of the dense products.
        rows: the smallest dimension of an expert's: tokens at once, or one of its widths.
        attention: operations of attention, causal, and of recurrent scans.
        moved: bytes of element-wise work: norms, residuals, rotations, activations, casts,
            tokens sorted by expert.
        read: bytes of all weights, once.
        local: experts of this device in all layers.
    """

    dense: float
    head: float
    experts: float
    width: float
    rows: float
    attention: float
    moved: float
    read: float
    local: float


def operators(layout: Layout, batch: Packed) -> Operators:
    """The amounts of a layout and a micro-batch."""
    shape, parallel = layout.shape, layout.parallel
    share = layout.stage / (parallel.tp * parallel.cp)
    tokens = batch.tokens * share
    routed = shape.expert_layers * shape.experts_per_token * shape.expert
    head = 2.0 * shape.head_matrix(layout.head) * batch.outputs
    experts = 2.0 * routed * tokens * layout.execution.balance
    visits = batch.tokens / parallel.cp * shape.experts_per_token
    rows = visits * parallel.ep / shape.experts if shape.experts else 1.0
    wide = (shape.expert_intermediate, shape.latent or shape.hidden)
    attention = shape.causal_flops(batch.tokens, batch.squares) + shape.scan_flops * batch.tokens
    return Operators(
        dense=2.0 * shape.dense_matrices * tokens,
        head=head * share + shape.image_flops(batch.samples) * share,
        experts=experts,
        width=min(batch.tokens / parallel.cp, narrowest(shape) / parallel.tp),
        rows=min(rows, *wide) if shape.experts else 1.0,
        attention=attention * share * max(1.0, 128 / shape.head_dim),
        moved=tokens * moved_by_token(shape, layout.execution, layout.element)
        + batch.outputs * share * shape.vocab * LOGIT,
        read=layout.replica_weights * layout.element,
        local=shape.expert_layers * layout.stage * shape.experts / parallel.ep,
    )


@lru_cache(maxsize=256)
def narrowest(shape: ModelShape) -> float:
    """The smaller of the residual stream's width and that of the dense feed-forward layers."""
    return float(min(shape.hidden, shape.intermediate or shape.hidden, shape.query_width))


@lru_cache(maxsize=256)
def moved_by_token(shape: ModelShape, execution: Execution, element: int) -> float:
    """Bytes that element-wise work of all layers moves for a token, each operation once.

    A norm reads and writes, a residual reads twice and writes; a rotation reads and writes
    queries and keys; a gated activation reads twice and writes. Tokens of experts are copied
    when they are sorted and when they are put together again. A product in a narrow format has its
    input read and written once for the forward and once for the backward pass.
    """
    hidden, around = shape.hidden, 5 * shape.hidden
    width = shape.query_width + shape.kv_width
    attention = around + (4 if shape.qk_norm else 2) * width
    act = 3 if shape.gated else 2
    dense = around + act * shape.intermediate
    visits, inner = shape.experts_per_token, shape.latent or hidden
    fused = execution.fused_experts
    inside = (1 if fused else act) * shape.expert_intermediate
    sorts = {"copies": 8, "once": 4, "fused": 2}[execution.dispatch]
    expert = around + visits * (sorts * inner + inside) + 12 * shape.experts
    expert += act * shape.shared_width
    if shape.other_vectors > 1e7 and shape.experts:
        expert += visits * (4 * shape.expert_intermediate + 6 * inner)
    inputs = shape.attention_layers * (hidden + shape.value_width)
    dense_layers = shape.feed_forward_layers - shape.expert_layers
    inputs += dense_layers * (hidden + shape.intermediate)
    inputs += shape.expert_layers * (
        visits * (inner + (0 if fused else shape.expert_intermediate)) + hidden + shape.shared_width
    )
    total = shape.attention_layers * attention + dense_layers * dense
    total += shape.expert_layers * expert
    if shape.mixer:
        mixer = shape.mixer
        total += mixer.layers * (around + 4 * mixer.convolved + 16 * mixer.values)
        inputs += mixer.layers * (hidden + mixer.values)
    moved = float(total * element)
    narrow = NARROW.get(execution.peak_format(""))
    if narrow:
        reads = 2 if narrow < 1 else 1
        moved += inputs * (reads * element + 2 * narrow)
    return moved
