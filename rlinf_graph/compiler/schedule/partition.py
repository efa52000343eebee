"""The best way to divide nodes into stages: exact, by labels that none other dominates.

The nodes of a stage share some devices in turn; stages run side by side on devices of their own.
What a division is worth depends on two figures only: the seconds of all its stages together, which
a first micro-batch takes to go through, and those of the slowest, which every further one adds.

A label is a set of nodes that have their stages already, with the devices these take and the two
figures. It is dropped where another one for the same nodes is no worse in anything, and where even
the least that the other nodes can cost on the devices left is too much. The least is found on a
relaxed problem: devices of all types are equal; either the slowest stage counts or the sum does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
Counts = NDArray[np.int64]
Score = Callable[[Seconds, Seconds], Seconds]

BEAMS = (1, 8, 64)
"""Labels kept for a set of nodes in quick searches for good divisions, one after another."""

EQUAL = 1e-11
"""Relative difference of scores that decides nothing."""

LEVELS = (256, 1 << 14)
"""Numbers of devices, and seconds, at which the relaxed problem is solved: least, and most."""

LEVELS_WORK = 1 << 24
"""All levels of all pairs of a set and a stage of it together, at most."""

BLOCK = 1 << 20
"""Labels made at once."""


@dataclass(frozen=True)
class Menu:
    """What a set of nodes costs as a stage, for every number of devices that is worth having.

    Attributes:
        devices: int64 `(rows, types)`.
        seconds: float64 `(rows,)`, of a micro-batch in all nodes of the set.
        rows: int64 `(rows,)`, where each stood in what the menu was made of.
    """

    devices: Counts
    seconds: Seconds
    rows: Counts

    @staticmethod
    def of(devices: Counts, seconds: Seconds) -> Menu:
        """Without what takes more devices and no less time; infinite seconds are left out."""
        rows = np.flatnonzero(np.isfinite(seconds))
        if devices.shape[1] == 1:
            rows = rows[np.lexsort((seconds[rows], devices[rows, 0]))]
            rows = rows[_falls(seconds[rows])]
        else:
            rows = rows[_front(np.column_stack([devices[rows], seconds[rows]]))]
        return Menu(devices[rows], seconds[rows], rows)

    @cached_property
    def relaxed(self) -> tuple[Counts, Seconds]:
        """Devices of any type, ascending, with seconds that fall."""
        totals = self.devices.sum(axis=1)
        order = np.lexsort((self.seconds, totals))
        rows = order[_falls(self.seconds[order])]
        return totals[rows], self.seconds[rows]


@dataclass(frozen=True)
class Problem:
    """What is to be divided.

    Attributes:
        nodes: how many.
        available: devices of each type.
        menus: by the bits of a set of nodes; one that is left out cannot be a stage.
        score: of a division, by the sum of its stages' seconds and by the slowest's; it never
            falls when one of them grows. Takes arrays.
    """

    nodes: int
    available: tuple[int, ...]
    menus: Mapping[int, Menu]
    score: Score


@dataclass(frozen=True)
class Stage:
    """Nodes, as bits, on devices of each type; `row` of their menu's source."""

    nodes: int
    devices: tuple[int, ...]
    seconds: float
    row: int


@dataclass(frozen=True)
class Division:
    """A division.

    Attributes:
        stages: in the order of their first nodes.
        score: by the problem.
        bound: no division has a lower score.
        labels: how many were looked at.
    """

    stages: tuple[Stage, ...]
    score: float
    bound: float
    labels: int

    @property
    def proved(self) -> bool:
        """Whether there is no better one."""
        return self.bound >= self.score * (1 - 2 * EQUAL)


def divide(problem: Problem, limit_s: float = float("inf")) -> Division | None:
    """The best division; None where there is none.

    Args:
        problem: what to divide.
        limit_s: seconds after which the best so far is returned, with a bound for all others.
    """
    if not problem.menus:
        return None
    deadline = time.perf_counter() + limit_s
    least = Least(problem)
    found, made = None, 0
    for beam in BEAMS:
        quick = _Labels(problem, least, float("inf"), beam, found)
        quick.run()
        found, made = quick.found, made + quick.made
    exact = _Labels(problem, least, deadline, found=found)
    exact.run()
    if exact.found is None:
        return None
    score, stages = exact.found
    return Division(stages, score, min(score, exact.bound), made + exact.made)


class Least:
    """Lower bounds of what sets of nodes cost on a number of devices, of whatever types."""

    def __init__(self, problem: Problem) -> None:
        """Solve the two relaxed problems for every set of nodes."""
        total = sum(problem.available)
        most = max(LEVELS[0], min(LEVELS[1], LEVELS_WORK // 3**problem.nodes))
        count = min(total, most)
        self._levels = np.unique(np.ceil(np.linspace(0, total, count + 1)).astype(np.int64))
        self._place = np.searchsorted(self._levels, np.arange(total + 1))
        fronts = {nodes: menu.relaxed for nodes, menu in problem.menus.items()}
        seconds = np.unique(np.concatenate([s for _d, s in fronts.values()]))
        step = -(-len(seconds) // most)
        below = np.concatenate(([0.0], seconds[step - 1 :: step][:-1])) if step > 1 else seconds
        limits = seconds[step - 1 :: step] if step > 1 else seconds
        if step > 1 and limits[-1] < seconds[-1]:
            limits, below = np.append(limits, seconds[-1]), np.append(below, limits[-1])
        sums = {nodes: _at(self._levels, *front) for nodes, front in fronts.items()}
        needs = {nodes: _needed(limits, *front) for nodes, front in fronts.items()}
        every = 1 << problem.nodes
        self.sums: list[Seconds] = [np.zeros(len(self._levels))] * every
        self.slowest: list[Seconds] = [np.zeros(len(self._levels))] * every
        need: list[Seconds] = [np.zeros(len(limits))] * every
        for nodes in range(1, every):
            sum_, least = np.full(len(self._levels), np.inf), np.full(len(limits), np.inf)
            for stage in stages_of(nodes):
                if stage in fronts:
                    rest = nodes ^ stage
                    sum_ = np.minimum(sum_, sums[stage] + self.sums[rest])
                    least = np.minimum(least, needs[stage] + need[rest])
            self.sums[nodes], need[nodes] = sum_, least
            at = np.searchsorted(-least, -self._levels, side="left")
            self.slowest[nodes] = np.append(below, np.inf)[at]

    def of(self, nodes: int, devices: Counts) -> tuple[Seconds, Seconds]:
        """The least sum, and the least slowest stage, on each of these numbers of devices."""
        place = self._place[devices]
        return self.sums[nodes][place], self.slowest[nodes][place]


def stages_of(nodes: int) -> Iterator[int]:
    """The subsets of a set that its lowest node belongs to, large ones first."""
    low = nodes & -nodes
    others = rest = nodes ^ low
    while True:
        yield low | rest
        if not rest:
            return
        rest = (rest - 1) & others


@dataclass(frozen=True)
class _Set:
    """Labels of one set of nodes, side by side; `parent` is a place in the labels of `before`."""

    devices: Counts
    total: Seconds
    slowest: Seconds
    lower: Seconds
    before: Counts
    parent: Counts
    row: Counts

    def at(self, places: Counts) -> _Set:
        return _Set(*(getattr(self, name)[places] for name in _Set.__dataclass_fields__))

    @staticmethod
    def joined(parts: list[_Set]) -> _Set:
        names = _Set.__dataclass_fields__
        return _Set(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


@dataclass
class _Labels:
    """One search over the labels. With a beam it is quick, and proves nothing."""

    problem: Problem
    least: Least
    deadline: float
    beam: int = 0
    found: tuple[float, tuple[Stage, ...]] | None = None
    bound: float = float("inf")
    made: int = 0
    _sets: dict[int, _Set] = field(default_factory=dict[int, _Set])

    def run(self) -> None:
        """From no node to all of them, stage by stage."""
        every = (1 << self.problem.nodes) - 1
        zero, none = np.zeros(1), np.zeros(1, dtype=np.int64)
        start = _Set(
            np.zeros((1, len(self.problem.available)), np.int64), zero, zero, zero, none, none, none
        )
        waiting: dict[int, list[_Set]] = {0: [start]}
        for nodes in range(every):
            parts = waiting.pop(nodes, [])
            if not parts:
                continue
            if time.perf_counter() > self.deadline:
                left = [s.lower.min() for each in (parts, *waiting.values()) for s in each]
                self.bound = float(min(left))
                return
            self._sets[nodes] = self._thinned(_Set.joined(parts))
            for stage in stages_of(every ^ nodes):
                if stage in self.problem.menus:
                    for made in self._extended(nodes, stage, every):
                        waiting.setdefault(nodes | stage, []).append(made)

    @property
    def _limit(self) -> float:
        return self.found[0] * (1 - EQUAL) if self.found else float("inf")

    def _thinned(self, labels: _Set) -> _Set:
        labels = labels.at(np.flatnonzero(labels.lower < self._limit))
        if self.beam and len(labels.total) > self.beam:
            best = np.lexsort((labels.total, labels.lower))[: self.beam]
            labels = labels.at(best)
        columns = np.column_stack([labels.devices, labels.total, labels.slowest])
        return labels.at(_front(columns))

    def _extended(self, nodes: int, stage: int, every: int) -> Iterator[_Set]:
        """The labels of a set with one more stage; complete ones are kept if they are best."""
        old, menu = self._sets[nodes], self.problem.menus[stage]
        rows = self._worth(old, menu, every ^ nodes ^ stage)
        if not len(rows) or not len(old.total):
            return
        size = max(1, BLOCK // len(rows))
        for first in range(0, len(old.total), size):
            part = np.arange(first, min(first + size, len(old.total)))
            made = self._product(old, part, menu, rows, nodes, every ^ nodes ^ stage)
            self.made += len(made.total)
            if nodes | stage != every:
                if len(made.total):
                    yield made
            elif len(made.total):
                best = int(np.argmin(made.lower))
                if made.lower[best] < self._limit:
                    self.found = float(made.lower[best]), self._stages(made, best, stage)

    def _worth(self, old: _Set, menu: Menu, rest: int) -> Counts:
        """The rows of a menu that may do with the best of what any label has."""
        if not len(old.total):
            return np.zeros(0, dtype=np.int64)
        devices = old.devices.sum(axis=1).min() + menu.devices.sum(axis=1)
        total = old.total.min() + menu.seconds
        slowest = np.maximum(old.slowest.min(), menu.seconds)
        return np.flatnonzero(self._lower(devices, total, slowest, rest) < self._limit)

    def _product(
        self, old: _Set, part: Counts, menu: Menu, rows: Counts, nodes: int, rest: int
    ) -> _Set:
        """Each label with each row, as far as the others can still be had for less than known."""
        devices = old.devices[part][:, None, :] + menu.devices[rows][None, :, :]
        fits = np.nonzero((devices <= np.asarray(self.problem.available)).all(axis=2))
        parent, row = part[fits[0]], rows[fits[1]]
        devices = devices[fits]
        total = old.total[parent] + menu.seconds[row]
        slowest = np.maximum(old.slowest[parent], menu.seconds[row])
        lower = self._lower(devices.sum(axis=1), total, slowest, rest)
        kept = np.flatnonzero(lower < self._limit)
        return _Set(
            devices[kept], total[kept], slowest[kept], lower[kept],
            np.full(len(kept), nodes), parent[kept], row[kept],
        )  # fmt: skip

    def _lower(self, devices: Counts, total: Seconds, slowest: Seconds, rest: int) -> Seconds:
        """The least score with so much spent already; infinite where the rest does not fit."""
        left = sum(self.problem.available) - devices
        able = np.flatnonzero(left >= 0)
        sums, others = self.least.of(rest, left[able])
        there = np.isfinite(sums) & np.isfinite(others)
        able, sums, others = able[there], sums[there], others[there]
        lower = np.full(len(total), np.inf)
        slowest = np.maximum(slowest[able], others)
        lower[able] = self.problem.score(total[able] + sums, slowest)
        return lower

    def _stages(self, labels: _Set, place: int, stage: int) -> tuple[Stage, ...]:
        """The stages of a complete label, followed back to the first."""
        made: list[Stage] = []
        while stage:
            menu, row = self.problem.menus[stage], int(labels.row[place])
            devices = tuple(int(d) for d in menu.devices[row])
            made.append(Stage(stage, devices, float(menu.seconds[row]), int(menu.rows[row])))
            nodes = int(labels.before[place])
            place, labels = int(labels.parent[place]), self._sets[nodes]
            stage = nodes ^ int(labels.before[place]) if nodes else 0
        return tuple(reversed(made))


def _front(columns: NDArray[Any]) -> Counts:
    """Places of the rows that no other row is at most as large as in every column."""
    rest = np.lexsort(columns.T[::-1])
    columns = columns.astype(np.float64)
    kept: list[int] = []
    while len(rest):
        first = columns[rest[0]]
        kept.append(int(rest[0]))
        rest = rest[(columns[rest] < first).any(axis=1)]
    return np.asarray(kept, dtype=np.int64)


def _falls(seconds: Seconds) -> NDArray[np.bool_]:
    """Which are below all before them."""
    best = np.minimum.accumulate(seconds)
    falls = np.ones(len(best), np.bool_)
    falls[1:] = best[1:] < best[:-1]
    return falls


def _at(levels: Counts, devices: Counts, seconds: Seconds) -> Seconds:
    """Seconds with at most so many devices."""
    place = np.searchsorted(devices, levels, side="right")
    return np.append(np.inf, seconds)[place]


def _needed(limits: Seconds, devices: Counts, seconds: Seconds) -> Seconds:
    """Devices with which a stage takes at most so many seconds."""
    place = np.searchsorted(-seconds, -limits, side="left")
    return np.append(devices.astype(np.float64), np.inf)[place]
