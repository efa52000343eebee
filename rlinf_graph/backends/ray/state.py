"""What ranks of a run wait for: samples on edges, and turns on shared devices. No processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from rlinf_graph.backends.edges import Rows
from rlinf_graph.ir.position import Moment
from rlinf_graph.ir.program import Channel, Program

Call = tuple[str, tuple[Any, ...]]
"""A method of the board, and its arguments."""

Place = tuple[str, Moment]
"""An edge at a moment."""

Part = tuple[Rows, Any]
"""Sample indices, and the batch that holds them, or a reference of it."""


class Queue:
    """An edge: which samples of which moment are accounted for, and where they are."""

    def __init__(self, channel: Channel, consumers: int) -> None:
        """Nothing has come."""
        self.channel, self.consumers = channel, consumers
        self.parts: dict[Moment, list[Part]] = {}
        self.freed: dict[Moment, int] = defaultdict(int)

    def has_room(self, moment: Moment) -> bool:
        """Whether samples of a moment may come."""
        return moment in self.parts or len(self.parts) < self.channel.capacity

    def open(self, moment: Moment) -> None:
        """From now on the moment has its place."""
        self.parts.setdefault(moment, [])

    def put(self, moment: Moment, part: Part) -> None:
        """Samples have come."""
        self.parts[moment].append(part)

    def has(self, moment: Moment, rows: Rows) -> bool:
        """Whether all these samples have come."""
        come = self.parts.get(moment)
        if not come:
            return False
        if any(known is rows or np.array_equal(known, rows) for known, _held in come):
            return True
        known = come[0][0] if len(come) == 1 else np.concatenate([rows for rows, _held in come])
        return bool(np.isin(rows, known).all())

    def holding(self, moment: Moment, rows: Rows) -> dict[int, Part]:
        """The parts with these samples, by their numbers."""
        parts = enumerate(self.parts[moment])
        return {
            number: part
            for number, part in parts
            if part[0] is rows or np.isin(part[0], rows).any()
        }

    def free(self, moment: Moment) -> None:
        """A consumer needs nothing more of a moment; after the last one it is forgotten."""
        self.freed[moment] += 1
        if self.freed[moment] == self.consumers:
            for held in (self.parts, self.freed):
                held.pop(moment, None)


class Ring:
    """Turns on shared devices."""

    def __init__(self, sizes: list[int]) -> None:
        """`sizes` are how many ranks have each turn."""
        self.sizes, self.turn, self.round, self.released = sizes, 0, 0, 0
        self.taken: dict[tuple[str, int], int] = defaultdict(int)

    def may(self, position: int, key: tuple[str, int]) -> bool:
        """Whether it is a rank's turn."""
        return (self.round, self.turn) == (self.taken[key], position)

    def take(self, key: tuple[str, int]) -> None:
        """A rank has its turn."""
        self.taken[key] += 1

    def release(self) -> None:
        """A turn is over for one rank."""
        self.released += 1
        if self.released == self.sizes[self.turn]:
            self.released = 0
            self.turn = (self.turn + 1) % len(self.sizes)
            self.round += self.turn == 0


def queues_of(program: Program, groups: Collection[str]) -> Mapping[str, Queue]:
    """The edges between some groups, by name."""
    return {
        channel.edge: Queue(channel, program.group(channel.target).ranks)
        for channel in program.channels
        if channel.source.node in groups and channel.target in groups
    }


def rings_of(program: Program, groups: Collection[str]) -> Mapping[str, Ring]:
    """The rings that only some groups are on, by name."""
    return {
        ring.name: Ring([sum(program.group(n).ranks for n in names) for names in ring.positions])
        for ring in program.rings
        if all(name in groups for names in ring.positions for name in names)
    }
