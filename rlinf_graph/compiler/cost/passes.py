"""Seconds of one forward pass, or forward and backward, over a packed micro-batch.

A roofline by class of operator: products at a share of peak that falls with their smallest
dimension, attention at a share of its own, element-wise work at the bandwidth of memory. Messages
are added: those that travel beside compute with the share that is waited for all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from rlinf_graph.compiler.cost.execution import BYTES
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.messages import messages
from rlinf_graph.compiler.cost.operators import Operators, operators
from rlinf_graph.compiler.cost.packed import Packed

Parts = dict[str, float]
"""Seconds by cause."""

H100 = 700 / 989e12
"""Watts by operation a second of an H100 in bfloat16, to which `PassConstants.power` refers."""

UNFUSED = 2.0
"""Times that element-wise work moves its operands when each operation is a kernel of its own, in
those when they are fused. Set by hand: with it torchtitan's eager runs come out 14 % slower than
the compiled ones, as they are published."""


@dataclass(frozen=True)
class Kind:
    """Which passes a call makes.

    Attributes:
        name: in the parts.
        forwards: forward passes, recomputation of all included.
        partial: of what stands between products and of every second product, to recompute them
            (torchtitan's selective checkpointing by operator).
        backwards: backward passes; products and element-wise work cost two forward passes there.
    """

    name: str
    forwards: int
    partial: int
    backwards: int

    @cached_property
    def compute(self) -> float:
        """Passes over the products, in forward passes."""
        return self.forwards + 0.5 * self.partial + 2 * self.backwards

    @cached_property
    def moves(self) -> int:
        """Passes over what stands between products, in forward passes."""
        return self.forwards + self.partial + 2 * self.backwards

    @cached_property
    def messages(self) -> int:
        """Passes that exchange activations."""
        return self.forwards + self.backwards

    @cached_property
    def gathers(self) -> int:
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


def pass_parts(layout: Layout, batch: Packed, kind: Kind, bubble: float) -> Parts:
    """Seconds of one call by cause.

    Args:
        layout: of the model.
        batch: what one data-parallel rank gets.
        kind: forward, or training.
        bubble: time that the pipeline's ends wait, as a share of the time it works.
    """
    work, constants = operators(layout, batch), layout.constants.passes
    parts: Parts = {kind.name: compute_s(layout, work, kind)}
    parts |= _message_parts(layout, batch, kind, parts[kind.name])
    launch = layout.host * layout.launch_s(kind.forwards + kind.partial + 2 * kind.backwards)
    if layout.constants.overlap:
        issued = 1 - layout.execution.graphs
        waits = work.layers * constants.route + work.local * constants.expert
        waits *= layout.host
        launch = max(0.0, launch * issued - sum(parts.values())) + kind.compute * waits * issued
    parts["launch"] = launch
    if bubble:
        parts["pipeline bubble"] = bubble * sum(parts.values())
    # What RL adds is work of the host: packing, losses that are not fused, no graphs.
    return scaled(parts, 1 + (layout.constants.iteration.trainer - 1) * layout.host)


def compute_s(layout: Layout, work: Operators, kind: Kind) -> float:
    """Seconds of a device's own work: operations, or reading the weights, and element-wise work."""
    constants, memory = layout.constants.passes, layout.hardware.memory_bandwidth
    plain, fast, share = _rates(layout)
    dense = work.dense * (1 + constants.half / work.width)
    experts = work.experts * (1 + constants.half / work.rows)
    products = (dense + experts) / fast + work.head / (plain * constants.matmul)
    heads = max(1.0, constants.heads / max(1, layout.shape.head_dim))
    attention = heads * work.attention / (plain * constants.attention * layout.execution.kernels)
    passes = kind.forwards + constants.backward * kind.backwards
    busy = (kind.compute * products + passes * attention) / share
    moved = kind.moves * constants.traffic * work.moved
    if not layout.execution.fused:
        moved *= UNFUSED
    bandwidth = memory * constants.bandwidth
    return max(busy, kind.compute * work.read / bandwidth) + moved / bandwidth


def _rates(layout: Layout) -> tuple[float, float, float]:
    """Peak in the weights' format, what the layers' products reach of theirs, and a share of both.

    The share is what the power of a device allows: products at peak draw more than newer devices
    may, the more so the fewer watts there are for an operation.
    """
    constants, hardware = layout.constants.passes, layout.hardware
    figures = dict(hardware.flops)
    plain = figures.get(layout.dtype, figures["float32"])
    wanted = layout.execution.product_format
    peak, reached = figures.get(wanted, plain), constants.matmul
    if wanted in BYTES and peak > plain:
        reached = constants.narrowest if BYTES[wanted] < 1 else constants.narrow
    share = 1.0
    if hardware.power:
        share = min(1.0, hardware.power / plain / H100) ** constants.power
    return plain, peak * reached, share


def _message_parts(layout: Layout, batch: Packed, kind: Kind, compute: float) -> Parts:
    """What is waited for of the messages of a call."""
    sent, beside = messages(layout, batch), layout.constants.passes.beside
    execution, passes = layout.execution, kind.messages
    waited = {
        "tp communication": passes * sent.tensor * (beside if execution.tensor_beside else 1),
        "cp communication": passes * sent.context * beside,
        "ep communication": passes * sent.experts * (beside if execution.experts_beside else 1),
        "pp communication": passes * sent.stages * beside,
    }
    parts = {cause: seconds for cause, seconds in waited.items() if seconds}
    if sent.gather:
        gathers = kind.gathers * sent.gather
        parts["fsdp communication"] = max(gathers - compute, beside * gathers)
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
