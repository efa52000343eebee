"""Seconds of one forward pass, or forward and backward, over a packed micro-batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.messages import Messages, messages
from rlinf_graph.compiler.cost.operators import Operators, operators
from rlinf_graph.compiler.cost.packed import Packed
from rlinf_graph.compiler.cost.pass_constants import PassConstants

Parts = dict[str, float]
"""Seconds by cause."""

H100 = 700 / 989e12
"""Watts by operation a second of an H100, to which `power` refers."""

UNFUSED = 2.0
"""Times that element-wise work moves its operands when each operation is a kernel of its own, in
those when they are fused."""


@dataclass(frozen=True)
class Kind:
    """Which passes a call makes.

    Attributes:
        name: in the parts.
        forwards: forward passes, recomputation included.
        partial: forward passes of attention and element-wise work alone, to recompute them.
        backwards: backward passes; of products they cost two forward passes.
    """

    name: str
    forwards: float
    partial: float
    backwards: float

    @property
    def compute(self) -> float:
        """Passes over the products, in forward passes."""
        return self.forwards + 2 * self.backwards

    @property
    def messages(self) -> float:
        """Passes that exchange activations."""
        return self.forwards + self.backwards

    @property
    def gathers(self) -> float:
        """Gathers of sharded weights, and scatters of their gradients."""
        return 1 + 2 * self.backwards


FORWARD = Kind("forward", 1, 0, 0)
TRAINING = Kind("forward and backward", 1, 0, 1)
SELECTIVE = Kind("forward, selective recomputation and backward", 1, 1, 1)
RECOMPUTED = Kind("forward, recomputation and backward", 2, 0, 1)


def training_kind(recompute: bool | str) -> Kind:
    """The passes of training with a plan's `recompute`."""
    if recompute == "selective":
        return SELECTIVE
    return RECOMPUTED if recompute else TRAINING


@dataclass(frozen=True)
class Amounts:
    """What a call asks of the hardware, whatever share of it is reached.

    Attributes:
        peak: operations a second of products in their format.
        plain: the same in the weights' format.
        narrow: bytes of an element of the products' format.
        bandwidth: bytes a second of memory.
    """

    kind: Kind
    operators: Operators
    messages: Messages
    peak: float
    plain: float
    narrow: float
    bandwidth: float
    density: float


def amounts(layout: Layout, batch: Packed, kind: Kind) -> Amounts:
    figures = dict(layout.hardware.flops)
    plain = figures.get(layout.dtype, figures["float32"])
    wanted = layout.execution.peak_format(layout.dtype)
    peak = figures.get(wanted, plain)
    narrow = 2.0
    if peak > plain:
        narrow = 0.5 if wanted == "float4" else 1.0
    return Amounts(
        kind, operators(layout, batch), messages(layout, batch), peak, plain, narrow,
        layout.hardware.memory_bandwidth,
        layout.hardware.power / plain / H100 if layout.hardware.power else 1.0,
    )


def compute_s(layout: Layout, made: Amounts, constants: PassConstants) -> float:
    """Seconds of the device's own work."""
    kind, work = made.kind, made.operators
    share = constants.matmul
    if made.narrow == 1.0:
        share = constants.narrow
    elif made.narrow == 0.5:
        share = constants.narrowest
    follow = made.density**constants.power
    share = min(1.0, share * follow)
    dense = work.dense * (1 + constants.half / work.width)
    experts = work.experts * (1 + constants.half / work.rows)
    products = (dense + experts) / (made.peak * share) + work.head / (made.plain * min(1.0, constants.matmul * follow))
    busy = (kind.compute + 0.5 * kind.partial) * products
    passes = kind.forwards + constants.backward * kind.backwards
    busy += passes * work.attention / (made.plain * min(1.0, constants.attention * layout.execution.kernels * follow))
    read = kind.compute * work.read / layout.bandwidth
    touched = (kind.compute + kind.partial) * work.moved * constants.traffic
    if not layout.execution.fused:
        touched *= UNFUSED
    return max(busy, read) + touched / layout.bandwidth


def pass_parts(layout: Layout, batch: Packed, kind: Kind, bubble: float) -> Parts:
    """Seconds of one call by cause.

    Args:
        layout: of the model.
        batch: what one data-parallel rank gets.
        kind: forward, or training.
        bubble: time that the pipeline's ends wait, as a share of the time it works.
    """
    return parts_of(layout, amounts(layout, batch, kind), bubble)


def parts_of(layout: Layout, made: Amounts, bubble: float) -> Parts:
    """The same of amounts that are known."""
    kind, constants = made.kind, layout.constants.passes
    compute = compute_s(layout, made, constants)
    parts: Parts = {kind.name: compute}
    sent = made.messages
    if sent.tensor:
        waited = constants.beside if layout.execution.tensor_beside else 1.0
        parts["tp communication"] = kind.messages * sent.tensor * waited
    if sent.context:
        parts["cp communication"] = kind.messages * sent.context * constants.beside
    if sent.experts:
        waited = constants.beside if layout.execution.experts_beside else 1.0
        parts["ep communication"] = kind.messages * sent.experts * waited
    if sent.stages:
        parts["pp communication"] = kind.messages * sent.stages * constants.beside
    if sent.gather:
        gathers = kind.gathers * sent.gather
        parts["fsdp communication"] = max(gathers - compute, constants.beside * gathers)
    stall = kind.compute * (made.operators.local * constants.stall + sent.expert_layers * constants.route)
    launch = layout.launch_s(kind.compute)
    if layout.constants.overlap:
        launch = max(0.0, launch * (1 - layout.execution.graphs) - sum(parts.values()))
        launch += stall * (1 - layout.execution.graphs)
    parts["launch"] = launch
    if bubble:
        parts["pipeline bubble"] = bubble * sum(parts.values())
    return parts


def bubble_of(pp: int, calls: int, vp: int = 1) -> float:
    """Share of its working time that a pipeline of `pp` stages idles over `calls` micro-batches.

    (p - 1) / m of 1F1B, and (p - 1) / (m v) with `vp` virtual stages a rank, interleaved
    (Narayanan et al. 2021, section 2.2).
    """
    return (pp - 1) / (max(1, calls) * vp)


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
