"""A run's events by node, iteration and rank, and its iterations from end to end."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rlinf_graph.compiler.explain.measured import FEW, Spread
from rlinf_graph.ir.timeline import Event

LOOKED_AT = 20
"""Iterations of which every gap is explained; more would say the same."""

Ranks = dict[int, list[Event]]


@dataclass(frozen=True)
class Recorded:
    """The events of a run.

    Attributes:
        events: of all ranks; seconds since the run began.
        iterations: how many were run.
        lag: iterations that may be under way beside another.
    """

    events: Sequence[Event]
    iterations: int
    lag: int = 0

    @cached_property
    def ends(self) -> list[float]:
        """When the last event of each iteration was over; of all before it, too."""
        ends = [0.0] * self.iterations
        for event in self.events:
            ends[event.at.iteration] = max(ends[event.at.iteration], event.end)
        for i in range(1, self.iterations):
            ends[i] = max(ends[i], ends[i - 1])
        return ends

    @cached_property
    def lengths(self) -> list[float]:
        """Seconds of each iteration."""
        return [end - before for before, end in zip([0.0, *self.ends], self.ends, strict=False)]

    @property
    def counted(self) -> range:
        """All iterations but the first, which warms up."""
        return range(min(1, self.iterations - 1), self.iterations)

    @property
    def period(self) -> Spread:
        """Seconds of an iteration."""
        return spread([self.lengths[i] for i in self.counted])

    @property
    def looked_at(self) -> range:
        """Iterations whose gaps are explained: not those at the end, which have nothing beside."""
        stop = self.iterations - 1 - self.lag
        stop = stop if stop > self.counted.start else self.iterations
        return range(self.counted.start, min(stop, self.counted.start + LOOKED_AT))

    @property
    def window(self) -> tuple[float, float]:
        """Seconds of the run in which those pass."""
        start, last = self.looked_at[0], self.looked_at[-1]
        return self.ends[start - 1] if start else 0.0, self.ends[last]

    @cached_property
    def origins(self) -> list[float]:
        """When a device (without devices: anything) first works for each iteration."""
        starts: dict[int, list[tuple[bool, float]]] = defaultdict(list)
        for event in self.events:
            starts[event.at.iteration].append((not event.devices, event.start))
        return [min(starts[i], default=(False, 0.0))[1] for i in range(self.iterations)]

    @cached_property
    def by_node(self) -> dict[str, dict[int, Ranks]]:
        """Events by node, iteration and rank, in the order of their starts."""
        made: dict[str, dict[int, Ranks]] = {}
        for event in sorted(self.events, key=lambda e: (e.start, e.end)):
            iterations = made.setdefault(event.group, {})
            ranks = iterations.setdefault(event.at.iteration, {})
            ranks.setdefault(event.at.rank, []).append(event)
        return made

    @cached_property
    def by_device(self) -> dict[int, list[Event]]:
        """Events of each device, in the order of their starts."""
        made: dict[int, list[Event]] = defaultdict(list)
        for event in sorted(self.events, key=lambda e: (e.start, e.end)):
            for device in event.devices:
                made[device].append(event)
        return made


def spread(values: Sequence[float]) -> Spread:
    """Median, mean, and what nine in ten lie between."""
    ordered = sorted(values)
    cut, count = len(ordered) // FEW, len(ordered)
    median, mean = statistics.median(ordered), statistics.fmean(ordered)
    return Spread(median, mean, ordered[cut], ordered[-1 - cut], count)
