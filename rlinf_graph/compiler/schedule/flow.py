"""How long an iteration of a plan takes in its steady state: the closed form.

Every step has, in each iteration, a moment at which its devices are free for it, one at which it
has handed on its first micro-batch, and one at which it is done. Each is the latest of a few
others, so a dozen iterations of all plans of a tree are a few hundred operations on arrays. Every
rule holds in a run, and none is there for what only mostly holds: the result is a lower bound, and
exact where every micro-batch of a step takes the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import numpy as np

from rlinf_graph.compiler.schedule.instance import Counts, Instance, Seconds, bits
from rlinf_graph.compiler.schedule.rows import Rows, places
from rlinf_graph.compiler.schedule.tree import Tree

ITERATIONS = 4
"""For each that may overlap; the second half of them is the steady state."""


@dataclass(frozen=True)
class _Moments:
    """Of one step in one iteration: released by it, handed on the first micro-batch, done."""

    start: Seconds
    first: Seconds
    end: Seconds
    release: Seconds


@dataclass
class Flow:
    """The closed form for the rows of one tree."""

    instance: Instance
    rows: Rows
    _done: list[dict[int, _Moments]] = field(default_factory=list[dict[int, _Moments]])

    @cached_property
    def order(self) -> list[int]:
        """The steps so that none comes before what it waits for; empty if some wait in a circle."""
        steps = self.instance.steps
        before: dict[int, set[int]] = {p: set(step.inputs) for p, step in enumerate(steps)}
        for place, (now, _last) in self._rings.items():
            before[place] |= now
        for members in self._in_step:
            for a, b in pairwise(members):
                before[b].add(a)
        try:
            return list(TopologicalSorter(before).static_order())
        except CycleError:
            return []

    def seconds(self, lag: int) -> Seconds:
        """Of an iteration, for each row, when weights may be so many iterations late."""
        count = ITERATIONS * (1 + lag)
        self._done = []
        ends: list[Seconds] = []
        for iteration in range(count):
            self._done.append({})
            for place in self.order:
                self._done[iteration][place] = self._moments(place, iteration, lag)
            made = self._done[iteration].values()
            ends.append(np.maximum.reduce([m.release for m in made]))
        half = count // 2
        return (ends[-1] - ends[half - 1]) / (count - half)

    def _moments(self, place: int, iteration: int, lag: int) -> _Moments:
        step, now = self.instance.steps[place], self._done[iteration]
        seconds, tail, load, unload = self._times[place]
        chunks = 1 if step.barrier or step.whole else self.instance.chunks
        free = self._free(place, iteration) + load
        for read, sync in zip(step.reads, self._syncs[place], strict=True):
            version = iteration - 1 - min(lag, read.most) - read.late
            if version >= 0:
                free = np.maximum(free, self._done[version][read.trainer].end)
            free = free + sync
        inputs = [now[p] for p in step.inputs]
        start = np.maximum.reduce([free, *((m.end if step.barrier else m.first) for m in inputs)])
        end = np.maximum.reduce([start + seconds, *(m.end + tail for m in inputs)])
        first = start + seconds / chunks
        for members in self._in_step:
            if place in members:
                first, end = self._in_turn(place, members, now, first, end)
        return _Moments(start, first, end, end + unload)

    def _free(self, place: int, iteration: int) -> Seconds:
        """When those that have their turn before are gone."""
        waits: list[Seconds] = [self._zero]
        if iteration:
            waits.append(self._done[iteration - 1][place].release)
        if place in self._rings:
            now, last = self._rings[place]
            waits += [self._done[iteration][p].release for p in sorted(now)]
            if iteration:
                waits += [self._done[iteration - 1][p].release for p in sorted(last)]
        return np.maximum.reduce(waits)

    def _in_turn(
        self, place: int, members: tuple[int, ...], now: dict[int, _Moments],
        first: Seconds, end: Seconds,
    ) -> tuple[Seconds, Seconds]:  # fmt: skip
        """A member of a turn once a micro-batch: everyone else's comes between two of its own."""
        chunks = self.instance.chunks
        whole = sum((self._times[p][0] for p in members), self._zero)
        mine = self._times[place][0] / chunks
        at = members.index(place)
        if at:
            before = now[members[at - 1]]
            first = np.maximum(first, before.first + mine)
            end = np.maximum(end, before.end + mine)
        return first, np.maximum(end, first + whole * ((chunks - 1) / chunks))

    @cached_property
    def _zero(self) -> Seconds:
        return np.zeros(len(self.rows.load))

    @cached_property
    def _times(self) -> list[tuple[Seconds, Seconds, Seconds, Seconds]]:
        """Of each step: its work, what is left after the last sample, before and after all that."""
        made: list[tuple[Seconds, Seconds, Seconds, Seconds]] = []
        for step in self.instance.steps:
            if step.item < 0:
                seconds = self._zero + step.seconds
                tail = seconds if step.barrier else seconds / self.instance.chunks
                made.append((seconds, tail, self._zero, self._zero))
                continue
            choices, pick = self.instance.choices[step.item], self.rows.picks[:, step.item]
            switch = np.where(self.rows.away[:, step.item], choices.switch[pick] / 2, 0.0)
            after = switch + choices.after[pick]
            made.append((choices.seconds[pick], choices.tail[pick], switch, after))
        return made

    @cached_property
    def _syncs(self) -> list[list[Seconds]]:
        """Seconds of each delivery that a step takes over, an iteration."""
        spans = places(self.instance, self.rows)
        return [
            [self._sync_seconds(step.item, self.instance.steps[r.trainer].item, spans) / r.every
             for r in step.reads]
            for step in self.instance.steps
        ]  # fmt: skip

    def _sync_seconds(
        self, reader: int, trainer: int, spans: dict[int, tuple[Counts, Counts, Counts]]
    ) -> Seconds:
        sync = self.instance.sync
        if sync is None or reader < 0:
            return self._zero
        columns = np.column_stack([*spans[trainer], *spans[reader]])
        unique, inverse = np.unique(columns, axis=0, return_inverse=True)
        ends = [tuple(map(int, row)) for row in unique]
        costs = [sync(trainer, reader, (e[0], e[1], e[2]), (e[3], e[4], e[5])) for e in ends]
        return np.asarray(costs, dtype=np.float64)[inverse.ravel()]

    @cached_property
    def _rings(self) -> dict[int, tuple[set[int], set[int]]]:
        """For a step those it waits for in its iteration, and in the one before."""
        found: dict[int, tuple[set[int], set[int]]] = {}
        for tree in _inner(self.rows.tree):
            if tree.kind != "turn":
                continue
            parts = [[self.instance.step_of[i] for i in bits(part.items)] for part in tree.parts]
            for position, members in enumerate(parts):
                for place in members:
                    now, last = found.setdefault(place, (set(), set()))
                    (now if position else last).update(parts[position - 1])
        return found

    @cached_property
    def _in_step(self) -> list[tuple[int, ...]]:
        return [
            tuple(self.instance.step_of[bits(part.items)[0]] for part in tree.parts)
            for tree in _inner(self.rows.tree)
            if tree.kind == "micro"
        ]


def _inner(tree: Tree) -> Iterator[Tree]:
    if tree.parts:
        yield tree
        for part in tree.parts:
            yield from _inner(part)
