"""Communication of one forward pass of a pipeline rank: seconds if nothing hid it."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.packed import Packed


@dataclass(frozen=True)
class Messages:
    """Seconds at the bandwidth that large collectives reach, by axis.

    Attributes:
        tensor: an all-reduce over tensor ranks behind each part of a layer (Shoeybi et al. 2019);
            with sequence parallelism it is a reduce-scatter and an all-gather and takes as long
            (Korthikanti et al. 2022, section 4.2.2).
        context: keys and values of each attention layer from all context ranks, gathered or passed
            on in a ring, which takes as long (Liu et al. 2023).
        experts: two exchanges of tokens a layer of experts.
        stages: one message a virtual stage.
        gather: all weights of a rank, layer by layer, from the data ranks that hold a part each.
    """

    tensor: float = 0.0
    context: float = 0.0
    experts: float = 0.0
    stages: float = 0.0
    gather: float = 0.0


def messages(layout: Layout, batch: Packed) -> Messages:
    """What a layout sends for a micro-batch."""
    parallel, shape, hardware = layout.parallel, layout.shape, layout.hardware
    tensor = context = experts = stages = gather = 0.0
    tokens = batch.tokens / parallel.cp
    hidden = tokens * shape.hidden * layout.element
    if parallel.tp > 1:
        parts = shape.attention_layers + shape.feed_forward_layers
        parts += shape.mixer.layers if shape.mixer else 0
        tensor = parts * layout.stage * hardware.tensor.all_reduce(hidden)
    if parallel.cp > 1:
        cached = batch.tokens * shape.kv_width * layout.element / min(parallel.tp, shape.kv_heads)
        layers = shape.attention_layers * layout.stage
        context = layers * hardware.context.all_gather(cached)
    if parallel.ep > 1:
        experts = 2 * shape.expert_layers * layout.stage * _exchange(layout, tokens)
    if parallel.pp > 1:
        stages = parallel.vp * hardware.stages.broadcast(hidden / parallel.tp)
    if layout.sharded:
        layers = shape.layers * layout.stage
        weights = layout.replica_weights * layout.element / layers
        gather = layers * hardware.data.all_gather(weights)
    return Messages(tensor, context, experts, stages, gather)


def _exchange(layout: Layout, tokens: float) -> float:
    """Seconds in which tokens reach their experts, or come back."""
    shape, ring = layout.shape, layout.hardware.experts
    size = tokens * (shape.latent or shape.hidden) * layout.element / layout.parallel.tp
    size *= layout.execution.balance
    if layout.execution.dispatch == "copies":
        return ring.all_to_all(size * shape.experts_per_token)
    return ring.dispatch(size, shape.experts_per_token)
