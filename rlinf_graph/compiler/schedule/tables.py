"""Scheduling problems whose costs are given as tables instead of by a cost model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlinf_graph.compiler.schedule.partition import (
    Division,
    Menu,
    Problem,
    Score,
    Seconds,
    divide,
)


@dataclass(frozen=True)
class Tables:
    """Nodes with the seconds of one micro-batch on a number of equal devices.

    Attributes:
        seconds: by node, by devices; a number that is left out cannot be had.
        devices: there are.
        micro_batches: of an iteration; they go through all nodes one after another.
    """

    seconds: Mapping[str, Mapping[int, float]]
    devices: int
    micro_batches: int

    @property
    def names(self) -> list[str]:
        """The nodes in an order that does not depend on that of the tables."""
        return sorted(self.seconds)

    def problem(self) -> Problem:
        """With a menu for each set of nodes: the sum of its nodes' seconds, where all have one."""
        names = self.names
        sizes = sorted({g for table in self.seconds.values() for g in table if g <= self.devices})
        devices = np.asarray(sizes, dtype=np.int64)[:, None]
        rows = [
            np.asarray([self.seconds[name].get(size, np.inf) for size in sizes], dtype=np.float64)
            for name in names
        ]
        sums: list[Seconds] = [np.zeros(len(sizes))]
        for nodes in range(1, 1 << len(names)):
            low = nodes & -nodes
            sums.append(sums[nodes ^ low] + rows[low.bit_length() - 1])
        menus = {nodes: Menu.of(devices, sums[nodes]) for nodes in range(1, len(sums))}
        menus = {nodes: menu for nodes, menu in menus.items() if len(menu.seconds)}
        return Problem(len(names), (self.devices,), menus, fill_and_stream(self.micro_batches))

    def divide(self, limit_s: float = float("inf")) -> Division | None:
        """The best division; None where the devices are too few."""
        return divide(self.problem(), limit_s)

    def named(self, division: Division) -> list[tuple[list[str], int]]:
        """The stages by name."""
        names = self.names
        return [
            ([name for bit, name in enumerate(names) if stage.nodes >> bit & 1], stage.devices[0])
            for stage in division.stages
        ]


def fill_and_stream(micro_batches: int) -> Score:
    """Seconds until all micro-batches are through: the first one's way, then the slowest stage."""
    return lambda total, slowest: total + (micro_batches - 1) * slowest
