"""What happened when: the same events from a simulation, `local` and Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlinf_graph.ir.position import Position


@dataclass(frozen=True, slots=True)
class Event:
    """One instruction that took time. Seconds count from the start of the run.

    Attributes:
        kind: `run`, `accumulate`, `optimizer_step`, `load`, `offload`, `sync`.
        group: the worker group, named as its node.
        at: rank, iteration, chunk and so on.
        devices: on which it ran; none for a host node.
        start, end: seconds.
    """

    kind: str
    group: str
    at: Position
    devices: tuple[int, ...]
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


def period(events: Sequence[Event], iterations: int) -> float:
    """Seconds between the ends of consecutive iterations, when things have settled.

    The first half of the iterations is taken for warm-up.
    """
    ends = [0.0] * iterations
    for event in events:
        if event.at.iteration < iterations:
            ends[event.at.iteration] = max(ends[event.at.iteration], event.end)
    settled = iterations // 2
    if settled == 0:
        return ends[-1]
    return (ends[-1] - ends[settled - 1]) / (iterations - settled)
