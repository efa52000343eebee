"""Seconds of one forward pass, or forward and backward, over a packed micro-batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.ir.work import Lengths

Parts = dict[str, float]
"""Seconds by cause."""


@dataclass(frozen=True)
class Packed:
    """What goes through one data-parallel rank at once.

    Attributes:
        samples: sequences; each with the vision tower's image where there is one.
        tokens: of all of them.
        squares: sum of their squared lengths.
        outputs: positions that go through the head.
    """

    samples: float
    tokens: float
    squares: float
    outputs: float

    @classmethod
    def of(cls, samples: float, lengths: Lengths, head: str) -> Packed:
        """Samples of average length; a score is read at one position of each."""
        mean = lengths.mean
        square = sum(q * q for q in lengths.quantiles) / len(lengths.quantiles)
        outputs = samples if head == "score" else samples * mean
        return cls(samples, samples * mean, samples * square, outputs)

    def padded(self, lengths: Lengths) -> Packed:
        """The same batch with every sequence as long as the expected longest of them."""
        longest = expected_longest(lengths, self.samples)
        tokens = self.samples * longest
        return Packed(self.samples, tokens, tokens * longest, self.outputs)


def expected_longest(lengths: Lengths, samples: float) -> float:
    """Mean length of the longest of so many sequences."""
    ends = sorted(lengths.quantiles)
    longest = previous = 0.0
    for index, end in enumerate(ends):
        longest += (end - previous) * (1 - (index / len(ends)) ** samples)
        previous = end
    return longest


@dataclass(frozen=True)
class Kind:
    """Which passes a call makes, in units of a forward pass.

    Attributes:
        name: in the parts.
        compute: forward 1, backward 2, recomputation 1.
        messages: all-reduces over tensor ranks and exchanges between experts: forward 1,
            backward 1, recomputation 1.
        gathers: of weights that are sharded over data ranks, and scatters of gradients.
    """

    name: str
    compute: float
    messages: float
    gathers: float


FORWARD = Kind("forward", 1, 1, 1)
TRAINING = Kind("forward and backward", 3, 2, 3)
RECOMPUTED = Kind("forward, recomputation and backward", 4, 3, 3)


def pass_parts(layout: Layout, batch: Packed, kind: Kind, bubble: float) -> Parts:
    """Seconds of one call by cause.

    Args:
        layout: of the model.
        batch: what one data-parallel rank gets.
        kind: forward, or training.
        bubble: time that the pipeline's ends wait, as a share of the time it works.
    """
    compute = kind.compute * _forward_s(layout, batch)
    parts: Parts = {kind.name: compute}
    parts |= _messages(layout, batch, kind)
    if layout.sharded:
        parts["fsdp communication"] = max(0.0, kind.gathers * _gather_s(layout) - compute)
    launch = layout.launch_s(kind.compute)
    if layout.constants.overlap:
        launch = max(0.0, launch - sum(parts.values()))
    parts["launch"] = launch
    if bubble:
        parts["pipeline bubble"] = bubble * sum(parts.values())
    return parts


def _forward_s(layout: Layout, batch: Packed) -> float:
    """The slower of operations and of reading the weights once, for one stage."""
    parallel = layout.parallel
    flops = layout.shape.forward_flops(batch.tokens, batch.squares, batch.outputs, layout.head)
    flops += layout.shape.image_flops(batch.samples)
    share = layout.stage / (parallel.tp * parallel.cp)
    read = layout.replica_weights * layout.element / layout.bandwidth
    return max(flops * share / layout.flops, read)


def _gather_s(layout: Layout) -> float:
    """All weights of a stage, layer by layer, to every data rank."""
    layers = layout.shape.layers * layout.stage
    weights = layout.replica_weights * layout.element / layers
    return layers * layout.hardware.data.all_gather(weights)


def _messages(layout: Layout, batch: Packed, kind: Kind) -> Parts:
    """Communication of activations; all of it counts as waited for.

    Two all-reduces a layer over tensor ranks (Shoeybi et al. 2019), one all-gather of keys and
    values over context ranks, two exchanges an expert layer, one message a stage boundary.
    """
    parallel, shape, hardware = layout.parallel, layout.shape, layout.hardware
    layers = shape.layers * layout.stage
    tokens = batch.tokens / parallel.cp
    hidden = tokens * shape.hidden * layout.element
    parts: Parts = {}
    if parallel.tp > 1:
        reduce = hardware.tensor.all_reduce(hidden)
        parts["tp communication"] = kind.messages * layers * 2 * reduce
    if parallel.cp > 1:
        cached = batch.tokens * shape.kv_width * layout.element / min(parallel.tp, shape.kv_heads)
        parts["cp communication"] = kind.messages * layers * hardware.context.all_gather(cached)
    if parallel.ep > 1:
        sent = hidden * shape.experts_per_token / parallel.tp
        exchange = hardware.experts.all_to_all(sent)
        parts["ep communication"] = (
            kind.messages * shape.expert_layers * layout.stage * 2 * exchange
        )
    if parallel.pp > 1:
        parts["pp communication"] = kind.messages * hardware.stages.broadcast(hidden / parallel.tp)
    return parts


def bubble_of(pp: int, calls: int) -> float:
    """Share of its working time that a pipeline of `pp` stages idles over `calls` micro-batches.

    (p - 1) / m of 1F1B (Narayanan et al. 2021).
    """
    return (pp - 1) / max(1, calls)


def split_calls(samples: int, micro_batch: int) -> tuple[int, int]:
    """Whole micro-batches, and the samples of a smaller last one."""
    return divmod(samples, micro_batch)


def scaled(parts: Parts, times: float) -> Parts:
    """Every part `times` over."""
    return {cause: seconds * times for cause, seconds in parts.items()}


def added(*several: Parts) -> Parts:
    """Parts of the same name together."""
    total: Parts = {}
    for parts in several:
        for cause, seconds in parts.items():
            total[cause] = total.get(cause, 0.0) + seconds
    return total


def per_rank(samples: int, ranks: int) -> int:
    """Samples of the data-parallel rank that has most."""
    return math.ceil(samples / ranks)
