"""The best plan of a few instances: trees and their rows, in the order of what they may reach.

One queue holds open trees, complete trees and plans, each with a bound that nothing in it can
beat. The first of it is opened further, or judged if it is a plan. When the first is not below the
best plan judged so far, that plan is the best there is; when time runs out before, what is first
in the queue says by how much a better one could be better.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import cast

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.compiler.schedule.flow import Flow
from rlinf_graph.compiler.schedule.instance import Instance, Seconds
from rlinf_graph.compiler.schedule.loads import Loads
from rlinf_graph.compiler.schedule.rows import Maker, Rows
from rlinf_graph.compiler.schedule.tree import Tree, divided, expanded

Keep = Callable[[Instance, Rows], NDArray[np.bool_]]
"""Which rows count."""

SAME = 1e-9
"""Relative difference that decides nothing."""

JUDGED = 1000
"""Closed forms that take about as long as a simulation."""

WORTH = 1e-3
"""A plan that is better than the best by more is judged at once."""

MOST_AT_ONCE = 1 << 15
"""Rows whose closed form is worked out together."""

DIVE = 64
"""In every so many steps a tree is completed at once."""

NEAR = 1.1
"""The first plan is a division by load, where its bound is that near to the least one."""

WIDER = 0.005
"""Rows of a tree are made in bands of load: the first so wide, each next one twice as wide."""


@dataclass(frozen=True)
class Answer:
    """A plan.

    Attributes:
        instance: its number.
        tree: who takes turns with whom.
        picks, away: of each item its choice, and whether it leaves the device between turns.
        lag: the staleness.
        seconds: an iteration, by the closed form.
    """

    instance: int
    tree: Tree
    picks: tuple[int, ...]
    away: tuple[bool, ...]
    lag: int
    seconds: float


@dataclass(frozen=True)
class Solved:
    """What was found.

    Attributes:
        best: the plan with the least that the judge said, and that figure.
        judged: all plans that were judged, in that order.
        bound: what no plan that was not judged can beat.
        plans: how many were looked at; of the others a bound was enough.
    """

    best: tuple[Answer, float] | None
    judged: tuple[tuple[Answer, float], ...]
    bound: float
    plans: int


@dataclass
class _Plans:
    """The plans of one tree and staleness, best first, and the next of them."""

    rows: Rows
    seconds: np.ndarray
    order: np.ndarray
    lag: int
    at: int = 0


_Entry = tuple[float, int, int, Tree | _Plans, float, float]
"""Bound, number of the entry, instance, what it is, and of rows the least load and the band."""


@dataclass
class Solver:
    """One search.

    Attributes:
        instances: the same problem cut into different numbers of micro-batches.
        judge: seconds of a plan; not below its closed form, which is taken where it is left out.
        enough: pairs of effort and a gap that is small enough then: closed forms that have been
            worked out, a judged plan counting as `JUDGED` of them.
        limit_s: seconds after which the best so far is taken.
        keep: which rows count; all where it is left out.
        most_bands: of rows that are made, at most.
        target: only plans below it are looked for, and the first one is enough.
    """

    instances: Sequence[Instance]
    judge: Callable[[Answer], float] | None = None
    enough: Sequence[tuple[int, float]] = ()
    limit_s: float = float("inf")
    keep: Keep | None = None
    most_bands: int = 1 << 30
    target: float = float("inf")
    _queue: list[_Entry] = field(default_factory=list[_Entry])
    _judged: list[tuple[Answer, float]] = field(default_factory=list[tuple[Answer, float]])
    _number: Iterator[int] = field(default_factory=count)
    _seen: set[tuple[int, Tree]] = field(default_factory=set[tuple[int, Tree]])
    _plans: int = 0
    _taken: int = 0
    _bands: int = 0
    _best: float = float("inf")
    _dropped: float = float("inf")

    def run(self) -> Solved:
        """Search."""
        deadline = time.perf_counter() + self.limit_s
        self._makers = [Maker(i, Loads(i)) for i in self.instances]
        for number, maker in enumerate(self._makers):
            every = (1 << maker.instance.items) - 1
            self._push(number, Tree("open" if every & (every - 1) else "leaf", every))
        self._best = self.target
        self._begin()
        while self._queue and not self._best < self.target < float("inf"):
            bound = self._queue[0][0]
            if bound >= self._best * (1 - SAME) or self._settled(bound):
                break
            if time.perf_counter() > deadline and (self._judged or self.target < float("inf")):
                break
            if self._bands >= self.most_bands and not isinstance(self._queue[0][3], _Plans):
                self._queue = [e for e in self._queue if isinstance(e[3], _Plans)]
                heapq.heapify(self._queue)
                self._dropped = min(self._dropped, bound)
                continue
            self._take()
        first = min([self._best, self._dropped, *(entry[0] for entry in self._queue[:1])])
        best = min(self._judged, key=lambda pair: _order(pair[0], pair[1]), default=None)
        return Solved(best, tuple(self._judged), first, self._plans)

    def _begin(self) -> None:
        """Judge a first plan: of the first instance, a division that loads devices least."""
        for number, maker in enumerate(self._makers[:1]):
            tree = divided(maker.loads.division(), maker.instance)
            every = self._queue[0][0] if self._queue else float("inf")
            if tree is not None and maker.loads.bound(tree) <= NEAR * every:
                self._seen.add((number, tree))
                self._band(number, tree, maker.loads.bound(tree), 0.0, WIDER)
        plans = [entry for entry in self._queue if isinstance(entry[3], _Plans)]
        if plans:
            first = min(plans)
            self._queue.remove(first)
            heapq.heapify(self._queue)
            self._judge(first[2], cast("_Plans", first[3]))

    def _settled(self, bound: float) -> bool:
        spent = self._plans + JUDGED * len(self._judged)
        return any(
            spent >= effort and bound >= self._best * (1 - gap) for effort, gap in self.enough
        )

    def _push(self, number: int, tree: Tree, floor: float = 0.0, width: float = WIDER) -> None:
        bound = max(floor, self._makers[number].loads.bound(tree))
        if bound < self._best * (1 - SAME):
            self._add(bound, number, tree, floor, width)

    def _add(
        self,
        bound: float,
        number: int,
        entry: Tree | _Plans,
        floor: float = 0.0,
        width: float = 0.0,
    ) -> None:
        heapq.heappush(self._queue, (bound, next(self._number), number, entry, floor, width))

    def _take(self) -> None:
        """The first of the queue: judged, made into rows or opened."""
        bound, _order_of_entry, number, entry, floor, width = heapq.heappop(self._queue)
        self._taken += 1
        if self._taken % DIVE == 0 and isinstance(entry, Tree) and not entry.complete:
            self._dive(number, entry)
        if isinstance(entry, _Plans):
            self._judge(number, entry)
        elif entry.complete:
            self._band(number, entry, bound, floor, width)
        else:
            for tree in expanded(entry, self.instances[number]):
                if (number, tree) not in self._seen:
                    self._push(number, tree)

    def _dive(self, number: int, tree: Tree) -> None:
        """Complete a tree by the form with the least bound at each step, for a good plan early."""
        loads = self._makers[number].loads
        while not tree.complete:
            forms = list(expanded(tree, self.instances[number]))
            if not forms:
                return
            tree = min(forms, key=lambda form: (loads.bound(form), str(form)))
        if (number, tree) not in self._seen and loads.bound(tree) < self._best * (1 - SAME):
            self._seen.add((number, tree))
            self._band(number, tree, loads.bound(tree), 0.0, WIDER)

    def _band(self, number: int, tree: Tree, bound: float, floor: float, width: float) -> None:
        """The rows of a tree in the next band of load, with their closed forms."""
        maker, instance = self._makers[number], self.instances[number]
        limit = min(self._best, bound * (1 + width))
        rows = maker.rows(tree, floor, limit)
        self._bands += 1
        self._dropped = min(self._dropped, max(bound, rows.dropped))
        if len(rows.load) > MOST_AT_ONCE:
            limit, width = _cut(rows.load), width / 2
            rows = rows.at(rows.load < limit)
        if limit < self._best and limit <= _most(instance):
            self._push(number, tree, limit, 2 * width)
        rows = rows.at(self.keep(instance, rows)) if self.keep else rows
        flow = Flow(instance, rows)
        if len(rows.load) and flow.order:
            self._plans += len(rows.load) * len(instance.lags)
            for lag in instance.lags if tree.splits else instance.lags[:1]:
                self._line_up(number, rows, np.maximum(flow.seconds(lag), rows.load), lag)

    def _line_up(self, number: int, rows: Rows, seconds: Seconds, lag: int) -> None:
        """Put the plans of a band in order; what is much better than the best is judged at once."""
        kept = np.flatnonzero(seconds < self._best * (1 - SAME))
        if not len(kept):
            return
        used = rows.devices[kept].sum(axis=1)
        order = kept[np.lexsort((kept, used, _rounded(seconds[kept])))]
        plans = _Plans(rows, seconds, order, lag)
        least = float(seconds[order[0]])
        if least < self._best * (1 - WORTH):
            self._judge(number, plans)
        else:
            self._add(least, number, plans)

    def _judge(self, number: int, plans: _Plans) -> None:
        row = int(plans.order[plans.at])
        rows = plans.rows
        answer = Answer(
            instance=number,
            tree=rows.tree,
            picks=tuple(map(int, rows.picks[row])),
            away=tuple(map(bool, rows.away[row])),
            lag=plans.lag,
            seconds=float(plans.seconds[row]),
        )
        value = self.judge(answer) if self.judge else answer.seconds
        self._judged.append((answer, value))
        self._best = min(self._best, value)
        plans.at += 1
        if plans.at < len(plans.order):
            self._add(float(plans.seconds[plans.order[plans.at]]), number, plans)


def _order(answer: Answer, seconds: float) -> tuple[float, int, int, str]:
    """Better plans first; of equal ones the fresher, simpler, by no chance."""
    return float(f"{seconds:.9g}"), answer.lag, answer.instance, str(answer.tree)


def _rounded(seconds: Seconds) -> Seconds:
    """To nine digits, so that rounding does not decide."""
    scale = 10.0 ** (8 - np.floor(np.log10(np.maximum(seconds, 1e-300))))
    return np.round(seconds * scale) / scale


def _cut(load: Seconds) -> float:
    """A load below which there are about as many rows as can be looked at together."""
    found = float(np.partition(load, MOST_AT_ONCE)[MOST_AT_ONCE])
    return found if (load < found).any() else float(np.nextafter(found, np.inf))


def _most(instance: Instance) -> float:
    """No device has more to do than everything, at its slowest."""
    return sum(
        float((instance.busy(item) + choices.switch).max()) if len(choices.seconds) else 0.0
        for item, choices in enumerate(instance.choices)
    )
