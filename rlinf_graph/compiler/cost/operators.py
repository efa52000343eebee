"""What one forward pass asks of one device, by class of operator: operations and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rlinf_graph.compiler.cost.execution import BYTES, Execution
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.packed import Packed
from rlinf_graph.compiler.cost.shapes import ModelShape

LOGIT = 10.0
"""Bytes moved for a logit in a pass: written, read as float32 and written again."""

SORTS = {"copies": 8, "once": 4, "fused": 2}
"""Times that an expert's token is read or written besides its products, by `Execution.dispatch`:
sorted and put back by destination and again by expert; by expert alone; only put back."""

ROUTED = 12
"""Elements moved for a token and an expert that it may visit: its logit, probability and place in
float32, several times."""

SCANNED = 16
"""Elements moved for a value of a recurrent layer: what goes into and out of the scan, its gate and
norm, and the float32 state that is written and read every 128 tokens (Dao and Gu 2024, section 6).
A count by hand, and doubled once published runs of hybrids were seen."""


@dataclass(frozen=True)
class Operators:
    """Amounts of one forward pass of a pipeline rank over one micro-batch, on one device.

    Attributes:
        dense: operations of products that every token goes through, without the head's.
        width: the smallest dimension of those products.
        experts: operations of the products of routed experts, on the busiest rank.
        rows: the smallest dimension of an expert's products: tokens at once, or a width.
        head: operations of the head and of vision towers.
        attention: operations of causal attention and of recurrent scans.
        moved: bytes of element-wise work: norms, residuals, rotations, activations, conversions,
            tokens sorted by expert, logits.
        read: bytes of all weights, once.
        layers: of experts.
        local: experts of this device in all of those.
    """

    dense: float
    width: float
    experts: float
    rows: float
    head: float
    attention: float
    moved: float
    read: float
    layers: float
    local: float


def operators(layout: Layout, batch: Packed) -> Operators:
    """The amounts of a layout and a micro-batch."""
    shape, parallel = layout.shape, layout.parallel
    share = layout.stage / (parallel.tp * parallel.cp)
    tokens, outputs = batch.tokens * share, batch.outputs * share
    attention = shape.causal_flops(batch.tokens, batch.squares) + shape.scan_flops * batch.tokens
    head = 2.0 * shape.head_matrix(layout.head) * outputs + shape.image_flops(batch.samples) * share
    experts = rows = layers = local = 0.0
    if shape.experts:
        visits = shape.experts_per_token * layout.execution.balance
        experts = 2.0 * shape.expert_layers * visits * shape.expert * tokens
        together = batch.tokens / parallel.cp * visits * parallel.ep / shape.experts
        rows = min(together, shape.expert_intermediate, shape.latent or shape.hidden)
        layers = shape.expert_layers * layout.stage
        local = layers * shape.experts / parallel.ep
    moved = tokens * moved_by_token(shape, layout.execution, layout.element)
    if layout.head == "lm":
        moved += outputs * shape.vocab * LOGIT
    return Operators(
        dense=2.0 * shape.dense_matrices * tokens,
        width=min(batch.tokens / parallel.cp, narrowest(shape) / parallel.tp),
        experts=experts,
        rows=max(1.0, rows),
        head=head,
        attention=attention * share,
        moved=moved,
        read=layout.replica_weights * layout.element,
        layers=layers,
        local=local,
    )


@lru_cache(maxsize=256)
def narrowest(shape: ModelShape) -> float:
    """The smallest of the widths of the residual stream, of queries and of the feed-forward."""
    return float(min(w for w in (shape.hidden, shape.intermediate, shape.query_width) if w))


@lru_cache(maxsize=256)
def moved_by_token(shape: ModelShape, execution: Execution, element: int) -> float:
    """Bytes that element-wise work of all layers moves for a token, each operation once.

    A product in a narrow format has its input read and written once for the forward and once for
    the backward pass; 4-bit formats scale by the largest value of a tensor too, which takes another
    read (OCP Microscaling 1.0; NVIDIA's description of NVFP4).
    """
    total = _attention(shape) + _dense(shape) + _experts(shape, execution) + _mixers(shape)
    moved = float(total * element)
    if narrow := BYTES.get(execution.product_format):
        reads = 2 if narrow < 1 else 1
        moved += _inputs(shape, execution) * (reads * element + 2 * narrow)
    return moved


def _around(shape: ModelShape) -> int:
    """Elements of a norm, read and written, and of a residual, read twice and written."""
    return 5 * shape.hidden


def _attention(shape: ModelShape) -> int:
    """A rotation reads and writes queries and keys, and so does their norm."""
    touches = 4 if shape.qk_norm else 2
    rotated = touches * (shape.query_width + shape.kv_width)
    return shape.attention_layers * (_around(shape) + rotated)


def _dense(shape: ModelShape) -> int:
    """A gated activation reads twice and writes, another reads and writes."""
    layers = shape.feed_forward_layers - shape.expert_layers
    return layers * (_around(shape) + shape.factors * shape.intermediate)


def _experts(shape: ModelShape, execution: Execution) -> int:
    """Each visited expert: sorting, activation, biases; and what every token visits.

    A fused activation is written by the first product. Products of experts do not add their biases:
    both outputs are read and written once more, the second in float32. That is an assumption about
    Megatron Core, made for GPT-OSS, the only such model among the published rows.
    """
    inner = shape.latent or shape.hidden
    activated = (1 if execution.fused_experts else shape.factors) * shape.expert_intermediate
    visit = SORTS[execution.dispatch] * inner + activated
    if shape.expert_bias:
        visit += 4 * shape.expert_intermediate + 6 * inner
    every = ROUTED * shape.experts + shape.factors * shape.shared_width
    return shape.expert_layers * (_around(shape) + shape.experts_per_token * visit + every)


def _mixers(shape: ModelShape) -> int:
    """Recurrent layers; their convolution reads and writes twice, once for its activation."""
    mixer = shape.mixer
    if mixer is None:
        return 0
    return mixer.layers * (_around(shape) + 4 * mixer.convolved + SCANNED * mixer.values)


def _inputs(shape: ModelShape, execution: Execution) -> int:
    """Elements of the inputs of all products of a token."""
    hidden, inner = shape.hidden, shape.latent or shape.hidden
    dense_layers = shape.feed_forward_layers - shape.expert_layers
    second = 0 if execution.fused_experts else shape.expert_intermediate
    visits = shape.experts_per_token * (inner + second)
    total = shape.attention_layers * (hidden + shape.value_width)
    total += dense_layers * (hidden + shape.intermediate)
    total += shape.expert_layers * (visits + hidden + shape.shared_width)
    if shape.mixer:
        total += shape.mixer.layers * (hidden + shape.mixer.values)
    return total
