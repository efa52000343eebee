"""A scheduling problem in numbers: what the search sees of a pipeline, a cluster and its costs.

An item is what gets devices as one: a node, or the nodes of a loop. Each has choices: a number of
devices of one type with what it takes on them. A step is an item or a node on the host, in the
order of the flow. docs/scheduler.md says what a plan of it is and how long an iteration takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
Counts = NDArray[np.int64]

Span = tuple[int, int, int]
"""Devices: their type, the first of them and how many."""

SyncSeconds = Callable[[int, int, Span, Span], float]
"""Of one delivery of weights: from which item to which one, from where to where."""


@dataclass(frozen=True)
class Choices:
    """Ways to run one item, side by side.

    Attributes:
        devices: int64 `(choices, types)`; of one type each.
        seconds: float64 `(choices,)`, an iteration.
        tail: likewise, of these those after the last sample has come, at least.
        resident, working: bytes of a device that stay, and more while it runs.
        switch: seconds to bring what stays to the device and take it away again.
        after: seconds of other work on the devices afterwards, which nobody waits for; below 0
            where the devices are free before it is done.
    """

    devices: Counts
    seconds: Seconds
    tail: Seconds
    resident: Seconds
    working: Seconds
    switch: Seconds
    after: Seconds

    @cached_property
    def busy(self) -> Seconds:
        """Seconds of an iteration in which the devices are taken, without switches."""
        return self.seconds + self.after

    def at(self, rows: Counts | NDArray[np.bool_]) -> Choices:
        """Some of them."""
        return Choices(*(getattr(self, name)[rows] for name in Choices.__dataclass_fields__))


@dataclass(frozen=True)
class Read:
    """A step that takes over weights.

    Attributes:
        trainer: the step that makes them.
        most: how many iterations late they may come.
        late: versions they are late whatever the plan, since they come now and then.
        every: iterations between two deliveries.
    """

    trainer: int
    most: int = 0
    late: int = 0
    every: int = 1


@dataclass(frozen=True)
class Step:
    """A node of the flow.

    Attributes:
        item: its number; -1 on the host.
        seconds: on the host, an iteration.
        barrier: whether it needs all samples before it begins.
        inputs: the steps before it, by number.
        reads: the weights it takes over.
        streams: whether it can take turns with others once a micro-batch.
        whole: whether it hands on nothing before it is done.
    """

    item: int = -1
    seconds: float = 0.0
    barrier: bool = False
    inputs: tuple[int, ...] = ()
    reads: tuple[Read, ...] = ()
    streams: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Instance:
    """One problem.

    Attributes:
        choices: of each item; those that do not fit on a device alone are left out.
        steps: in an order of the flow; each item is in one.
        available: devices of each type.
        memory: bytes of a device of each type.
        chunks: micro-batches of every edge that streams.
        lags: values of the staleness that may be chosen.
        sync: seconds of deliveries; they cost nothing where it is left out.
        least_sync: for each item the seconds of an iteration in which it takes over weights, at
            least; nothing where it is left out.
        together: for each item the bits of those that it cannot stand side by side with.
        apart: likewise, of those that it cannot take turns with.
    """

    choices: tuple[Choices, ...]
    steps: tuple[Step, ...]
    available: tuple[int, ...]
    memory: tuple[float, ...]
    chunks: int = 1
    lags: tuple[int, ...] = (0,)
    sync: SyncSeconds | None = field(default=None, compare=False)
    least_sync: tuple[float, ...] = ()
    together: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()

    def busy(self, item: int) -> Seconds:
        """Of each choice of an item, the seconds its devices are taken at least; no switches.

        What takes turns once a micro-batch takes over weights while others have theirs.
        """
        beside = self.chunks > 1 and self.steps[self.step_of[item]].streams
        return self.choices[item].busy + (0.0 if beside else self.taking_over(item))

    def taking_over(self, item: int) -> float:
        """The least seconds of an item's deliveries."""
        return self.least_sync[item] if self.least_sync else 0.0

    @property
    def items(self) -> int:
        """How many."""
        return len(self.choices)

    @cached_property
    def step_of(self) -> tuple[int, ...]:
        """The step of each item."""
        places = {step.item: place for place, step in enumerate(self.steps)}
        return tuple(places[item] for item in range(self.items))

    @cached_property
    def before(self) -> tuple[frozenset[int], ...]:
        """All steps that each step depends on within an iteration."""
        found: list[frozenset[int]] = []
        for step in self.steps:
            found.append(frozenset(step.inputs).union(*(found[i] for i in step.inputs)))
        return tuple(found)

    @cached_property
    def feeds(self) -> tuple[int, ...]:
        """For each item the bits of those that depend on it."""
        return tuple(
            sum(
                1 << other
                for other in range(self.items)
                if self.step_of[item] in self.before[self.step_of[other]]
            )
            for item in range(self.items)
        )


def bits(items: int) -> list[int]:
    """The items of a set."""
    return [i for i in range(items.bit_length()) if items >> i & 1]
