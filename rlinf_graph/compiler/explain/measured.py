"""What a run took, as numbers: the measured side of a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlinf_graph.compiler.explain.segment import Kind, Segment

WaitKind = Literal["samples", "weights", "turn", "ranks", "room", "handover", "done", "idle"]
Clock = Literal["shared", "own"]
SLOW = 1.5
"""An iteration that takes this many times the median is told."""

FEW = 20
"""Iterations from which on the longest and shortest twentieth are left out of a spread."""


@dataclass(frozen=True)
class Spread:
    """A figure of `count` iterations; nine in ten of them lie between `low` and `high`."""

    median: float
    mean: float
    low: float
    high: float
    count: int

    @property
    def span(self) -> str:
        """What `low` and `high` are the ends of; of few iterations, all."""
        return "nine in ten iterations" if self.count >= FEW else "all iterations"


@dataclass(frozen=True)
class SlowRank:
    """The rank of a node that works longest, and how many times the mean of all ranks that is."""

    rank: int
    devices: str
    ratio: float


@dataclass(frozen=True)
class Measured:
    """One node.

    Attributes:
        first_s, last_s: as in `Times`, over all ranks; medians. None for deliveries.
        busy: seconds of an iteration as in `Times`, the mean of all ranks.
        ratio: median measured by estimated; None where nothing was estimated.
        ran: in how many of the iterations it counts.
        inside: whether the median lies within the estimate's 80 % interval; None where it has none.
        warming: whether it only ran in the first iteration, which counts for nothing else.
        slowest: only where a rank takes much longer than the others.
    """

    first_s: float | None
    last_s: float | None
    busy: Spread
    ratio: float | None
    ran: int
    inside: bool | None = None
    warming: bool = False
    slowest: SlowRank | None = None


@dataclass(frozen=True)
class Wait:
    """Seconds of an iteration in which a device of a lane is idle, for one reason.

    Attributes:
        kind: `samples` of `node`, its `weights`, other `ranks` of it, `room` for what it takes;
            `turn`: it works on the devices of a turn; `handover`: its inputs are there and it has
            not begun; `done`: nothing more comes; `idle`: for no reason that is known.
        node: who is waited for; empty for `done` and `idle`.
    """

    kind: WaitKind
    node: str
    seconds: float


@dataclass(frozen=True)
class Part:
    """Seconds of a lane in an iteration that one node takes, for one kind of doing."""

    node: str
    kind: Kind
    estimated_s: float
    measured_s: float


@dataclass(frozen=True)
class MeasuredLane:
    """A lane: means over its devices and the iterations that were looked at.

    Attributes:
        where, count: as in `Lane`.
        seconds: of an iteration; busy and idle ones add up to it.
        estimated_s: of an estimated iteration.
        parts: what it is busy with, the longest first.
        waits: why it is idle, the longest first.
        segments: of the iteration that is shown, on the lane's first device.
        estimated_peak, peak: most bytes in use on one of the devices; None where nothing tells.
    """

    where: str
    count: int
    seconds: float
    estimated_s: float
    parts: tuple[Part, ...]
    waits: tuple[Wait, ...]
    segments: tuple[Segment, ...]
    estimated_peak: float | None = None
    peak: float | None = None

    @property
    def idle_s(self) -> float:
        """Seconds of an iteration in which nothing runs."""
        return sum(wait.seconds for wait in self.waits)

    @property
    def estimated_idle_s(self) -> float:
        """The same, as estimated."""
        return max(0.0, self.estimated_s - sum(part.estimated_s for part in self.parts))


@dataclass(frozen=True)
class SlowIteration:
    """An iteration much longer than the median, and the node that took most of the excess."""

    iteration: int
    seconds: float
    node: str | None
    more_s: float


@dataclass(frozen=True)
class Age:
    """How many samples of a model were trained on at an age in iterations."""

    model: str
    age: int
    samples: int


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        iterations: all of them.
        warm_up_s: seconds of the first iteration; None where it is the only one, and counts.
        period: seconds of an iteration, from end to end.
        ratio: its median by the estimate.
        inside: whether the median lies within the estimate's 80 % interval.
        clock: `own`: each rank has a clock that only runs while it works or waits for others.
        shown: the iteration of `lanes` that is drawn, and its seconds.
        lanes: devices.
        slow: iterations much longer than the others, the longest first.
        ages: of samples at training.
        refill: what a filter let through, in lines; none where there is none.
    """

    iterations: int
    warm_up_s: float | None
    period: Spread
    ratio: float
    inside: bool
    clock: Clock
    shown: tuple[int, float]
    lanes: tuple[MeasuredLane, ...]
    slow: tuple[SlowIteration, ...]
    ages: tuple[Age, ...]
    refill: tuple[str, ...] = ()
