"""Communication of one forward pass of a pipeline rank: seconds if nothing hid it."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.packed import Packed


@dataclass(frozen=True)
class Messages:
    """Seconds at the bandwidth that large collectives reach, by axis.

    Attributes:
        tensor: two all-reduces a layer over tensor ranks (Shoeybi et al. 2019); with sequence
            parallelism each is a reduce-scatter and an all-gather and takes as long
            (Korthikanti et al. 2022, section 4.2.2).
        context: keys and values of each attention layer to all context ranks, in a ring or
            gathered.
        experts: two exchanges of tokens a layer of experts.
        stages: one message a virtual stage.
        gather: all weights of the stages, layer by layer, to every data rank.
        expert_layers: layers of experts of this rank.
    """

    tensor: float = 0.0
    context: float = 0.0
    experts: float = 0.0
    stages: float = 0.0
    gather: float = 0.0
    expert_layers: float = 0.0


def messages(layout: Layout, batch: Packed) -> Messages:
    """What a layout sends for a micro-batch."""
    parallel, shape, hardware = layout.parallel, layout.shape, layout.hardware
    stage = layout.stage
    tensor = context = experts = stages = gather = 0.0
    tokens = batch.tokens / parallel.cp
    hidden = tokens * shape.hidden * layout.element
    if parallel.tp > 1:
        parts = shape.attention_layers + shape.feed_forward_layers
        if shape.mixer:
            parts += shape.mixer.layers
        tensor = parts * stage * hardware.tensor.all_reduce(hidden)
    if parallel.cp > 1:
        cached = batch.tokens * shape.kv_width * layout.element / min(parallel.tp, shape.kv_heads)
        context = shape.attention_layers * stage * hardware.context.all_gather(cached)
    if parallel.ep > 1:
        token = (shape.latent or shape.hidden) * layout.element / parallel.tp
        visits = shape.experts_per_token
        if layout.execution.dispatch == "copies":
            sent = hardware.experts.all_to_all(tokens * token * visits)
        else:
            sent = hardware.experts.dispatch(tokens * token, visits)
        experts = 2 * shape.expert_layers * stage * sent * layout.execution.balance
    if parallel.pp > 1:
        stages = parallel.vp * hardware.stages.broadcast(hidden / parallel.tp)
    if layout.sharded:
        gather = gather_s(layout)
    return Messages(tensor, context, experts, stages, gather, shape.expert_layers * stage)


def gather_s(layout: Layout) -> float:
    """All weights of a stage, layer by layer, to every data rank."""
    layers = layout.shape.layers * layout.stage
    weights = layout.replica_weights * layout.element / layers
    return layers * layout.hardware.data.all_gather(weights)
