"""The best plan by trying all of them, from docs/scheduler.md alone, and as plain as it is there.

Nothing here is shared with the solver but the instance. A tree is a leaf, `("leaf", item)`, or a
kind with its parts, `("turn", (part, part))`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from rlinf_graph.compiler.schedule.instance import Instance, Span
from tests.compiler.schedule.oracle_trees import Node, has_split, items_of, text, trees

Place = dict[int, Span]
"""The devices of each item."""


class CircularWait(Exception):
    """A moment that depends on itself."""


@dataclass(frozen=True)
class Plan:
    """A point of the space; `instance` is its number."""

    instance: int
    tree: Node
    picks: tuple[int, ...]
    away: tuple[bool, ...]
    lag: int

    def key(self) -> str:
        """Everything there is to say of it."""
        away = "".join("a" if flag else "s" for flag in self.away)
        return f"{self.instance} {text(self.tree)} {self.picks} {away} {self.lag}"


# The devices.


def needs(instance: Instance, tree: Node, picks: Sequence[int]) -> list[int]:
    """Devices of each type."""
    kind, parts = tree
    if kind == "leaf":
        return [int(count) for count in instance.choices[parts].devices[picks[parts]]]
    counts = zip(*(needs(instance, part, picks) for part in parts), strict=True)
    return [sum(each) if kind == "split" else max(each) for each in counts]


def laid_out(instance: Instance, tree: Node, picks: Sequence[int]) -> Place:
    """The devices of all items."""
    found: Place = {}

    def lay(node: Node, first: list[int]) -> None:
        kind, parts = node
        if kind == "leaf":
            need = needs(instance, node, picks)
            sort = next(t for t, count in enumerate(need) if count)
            found[parts] = (sort, first[sort], need[sort])
            return
        for part in parts:
            lay(part, first)
            if kind == "split":
                need = needs(instance, part, picks)
                first = [a + b for a, b in zip(first, need, strict=True)]

    lay(tree, [0] * len(instance.available))
    return found


def fits_devices(instance: Instance, tree: Node, picks: Sequence[int]) -> bool:
    """Whether no type has too few devices."""
    need = needs(instance, tree, picks)
    return all(a <= b for a, b in zip(need, instance.available, strict=True))


def fits_memory(
    instance: Instance, place: Place, picks: Sequence[int], away: Sequence[bool]
) -> bool:
    """Whether everything fits, device by device."""
    there: dict[tuple[int, int], list[int]] = {}
    for item, (sort, first, count) in place.items():
        for index in range(first, first + count):
            there.setdefault((sort, index), []).append(item)
    resident = [float(c.resident[pick]) for c, pick in zip(instance.choices, picks, strict=True)]
    working = [float(c.working[pick]) for c, pick in zip(instance.choices, picks, strict=True)]
    for (sort, _), items in there.items():
        kept = sum(resident[item] for item in items if not away[item])
        for item in items:
            besides = working[item] + (resident[item] if away[item] else 0.0)
            if kept + besides > instance.memory[sort]:
                return False
    return True


def may_leave(tree: Node, turn: bool = False) -> tuple[int, ...]:
    """The items that may be away: those below a turn that are in no micro."""
    kind, parts = tree
    if kind == "leaf":
        return (parts,) if turn else ()
    if kind == "micro":
        return ()
    return tuple(item for part in parts for item in may_leave(part, turn or kind == "turn"))


# The seconds.


class Costs:
    """What the picked choices take, of each step; arrays do as well as floats.

    Attributes:
        seconds, tail: of each step.
        half: half of the switch, of steps that are away between turns.
        after: what their devices have to do afterwards.
        sync: of each `(step, place in reads)` its part of the seconds of a delivery.
    """

    def __init__(
        self,
        instance: Instance,
        picks: Sequence[Any],
        away: Sequence[bool],
        place: Place | None,
    ):
        chunks = instance.chunks
        self.seconds: list[Any] = []
        self.tail: list[Any] = []
        self.half: list[Any] = []
        self.after: list[Any] = []
        self.sync: dict[tuple[int, int], float] = {}
        for v, step in enumerate(instance.steps):
            if step.item < 0:
                self.seconds.append(step.seconds)
                self.tail.append(step.seconds if step.barrier else step.seconds / chunks)
                self.half.append(0.0)
                self.after.append(0.0)
                continue
            choices, pick = instance.choices[step.item], picks[step.item]
            self.seconds.append(choices.seconds[pick])
            self.tail.append(choices.tail[pick])
            self.after.append(choices.after[pick])
            self.half.append(choices.switch[pick] / 2 if away[step.item] else 0.0)
            for at, read in enumerate(step.reads):
                self.sync[v, at] = 0.0
                if instance.sync is not None and place is not None:
                    source = place[instance.steps[read.trainer].item]
                    maker = instance.steps[read.trainer].item
                    delivery = instance.sync(maker, step.item, source, place[step.item])
                    self.sync[v, at] = delivery / read.every


class Timeline:
    """Moments of a run, each as the specification has it."""

    def __init__(
        self,
        instance: Instance,
        tree: Node,
        costs: Costs,
        lag: int,
        larger: Callable[[Any, Any], Any] = max,
    ):
        self.instance, self.costs, self.lag, self.larger = instance, costs, lag, larger
        self.known: dict[tuple[str, int, int], Any] = {}
        steps = range(len(instance.steps))
        self.same: list[list[int]] = [[] for _ in steps]
        self.last: list[list[int]] = [[] for _ in steps]
        self.micro: dict[int, tuple[int, ...]] = {}
        self._walk(tree)

    def _walk(self, tree: Node) -> None:
        kind, parts = tree
        if kind == "leaf":
            return
        places = [tuple(self.instance.step_of[i] for i in items_of(part)) for part in parts]
        if kind == "micro":
            members = tuple(v for part in places for v in part)
            self.micro.update(dict.fromkeys(members, members))
        if kind == "turn":
            for at, part in enumerate(places):
                for v in part:
                    if at:
                        self.same[v].extend(places[at - 1])
                    else:
                        self.last[v].extend(places[-1])
        for part in parts:
            self._walk(part)

    def at(self, name: str, v: int, i: int) -> Any:
        """A moment of step v in iteration i."""
        if i < 0:
            return 0.0
        key = (name, v, i)
        if key not in self.known:
            self.known[key] = None
            self.known[key] = getattr(self, name)(v, i)
        if self.known[key] is None:
            raise CircularWait(key)
        return self.known[key]

    def most(self, moments: Sequence[Any]) -> Any:
        """The latest."""
        found = moments[0]
        for moment in moments[1:]:
            found = self.larger(found, moment)
        return found

    def free(self, v: int, i: int) -> Any:
        """When it may use its devices, with what it keeps on them."""
        moments = [self.at("release", v, i - 1)]
        moments += [self.at("release", u, i) for u in self.same[v]]
        moments += [self.at("release", u, i - 1) for u in self.last[v]]
        return self.most(moments) + self.costs.half[v]

    def ready(self, v: int, i: int) -> Any:
        """When it has its weights."""
        moment = self.at("free", v, i)
        for at, read in enumerate(self.instance.steps[v].reads):
            version = i - 1 - min(self.lag, read.most) - read.late
            weights = self.at("end", read.trainer, version)
            moment = self.larger(moment, weights) + self.costs.sync[v, at]
        return moment

    def start(self, v: int, i: int) -> Any:
        """When it begins."""
        step = self.instance.steps[v]
        name = "end" if step.barrier else "first"
        return self.most([self.at("ready", v, i), *(self.at(name, u, i) for u in step.inputs)])

    def first(self, v: int, i: int) -> Any:
        """When its first micro-batch is there."""
        step = self.instance.steps[v]
        chunks = 1 if step.barrier or step.whole else self.instance.chunks
        share = self.costs.seconds[v] / chunks
        moments = [self.at("start", v, i) + share]
        members = self.micro.get(v, (v,))
        if v != members[0]:
            moments.append(self.at("first", members[members.index(v) - 1], i) + share)
        return self.most(moments)

    def end(self, v: int, i: int) -> Any:
        """When all of it is there."""
        seconds, chunks = self.costs.seconds, self.instance.chunks
        moments = [self.at("start", v, i) + seconds[v]]
        moments += [
            self.at("end", u, i) + self.costs.tail[v] for u in self.instance.steps[v].inputs
        ]
        members = self.micro.get(v, ())
        if members:
            together = sum(seconds[u] for u in members)
            moments.append(self.at("first", v, i) + together * (chunks - 1) / chunks)
            if v != members[0]:
                before = members[members.index(v) - 1]
                moments.append(self.at("end", before, i) + seconds[v] / chunks)
        return self.most(moments)

    def release(self, v: int, i: int) -> Any:
        """When its devices are free for what comes next."""
        return self.at("end", v, i) + self.costs.after[v] + self.costs.half[v]

    def steady(self) -> Any:
        """Seconds of an iteration in the long run."""
        count = 4 * (1 + self.lag)
        steps = range(len(self.instance.steps))
        ends = [self.most([self.at("release", v, i) for v in steps]) for i in range(count)]
        return (ends[count - 1] - ends[count // 2 - 1]) / (count // 2)


def load(instance: Instance, tree: Node, costs: Costs, larger: Any = max) -> Any:
    """Seconds that the busiest device works, counted by the tree."""
    kind, parts = tree
    if kind == "leaf":
        v = instance.step_of[parts]
        beside = instance.chunks > 1 and instance.steps[v].streams
        least = instance.least_sync[parts] if instance.least_sync and not beside else 0.0
        return costs.seconds[v] + costs.after[v] + 2 * costs.half[v] + least
    loads = [load(instance, part, costs, larger) for part in parts]
    found = loads[0]
    for each in loads[1:]:
        found = larger(found, each) if kind == "split" else found + each
    return found


def seconds(instance: Instance, plan: Plan) -> float:
    """Of an iteration; infinite where the plan does not exist or does not fit."""
    if not fits_devices(instance, plan.tree, plan.picks):
        return math.inf
    place = laid_out(instance, plan.tree, plan.picks)
    if not fits_memory(instance, place, plan.picks, plan.away):
        return math.inf
    costs = Costs(instance, plan.picks, plan.away, place)
    try:
        steady = Timeline(instance, plan.tree, costs, plan.lag).steady()
    except CircularWait:
        return math.inf
    return float(max(steady, load(instance, plan.tree, costs)))


# The search.


def flags(instance: Instance, tree: Node) -> Iterator[tuple[bool, ...]]:
    """All ways to keep or take away what may leave."""
    leaving = may_leave(tree)
    for chosen in product((False, True), repeat=len(leaving)):
        away = dict(zip(leaving, chosen, strict=True))
        yield tuple(away.get(item, False) for item in range(instance.items))


def placements(instances: Sequence[Instance]) -> Iterator[tuple[float, int, Node, tuple[int, ...]]]:
    """Load without switches, instance, tree and picks of everything that has enough devices."""
    for number, instance in enumerate(instances):
        for tree in trees(instance, tuple(range(instance.items))):
            for picks in product(*(range(len(c.seconds)) for c in instance.choices)):
                if fits_devices(instance, tree, picks):
                    costs = Costs(instance, picks, [False] * instance.items, None)
                    yield float(load(instance, tree, costs)), number, tree, picks


def plans(instances: Sequence[Instance], below: list[float]) -> Iterator[tuple[Plan, float]]:
    """All plans that exist with their seconds, but those whose load alone is not below `below[0]`.

    The caller may lower that between two of them.
    """
    for least, number, tree, picks in sorted(placements(instances), key=lambda entry: entry[0]):
        if least >= below[0]:
            return
        instance = instances[number]
        lags = instance.lags if has_split(tree) else (0,)
        for away in flags(instance, tree):
            if load(instance, tree, Costs(instance, picks, away, None)) >= below[0]:
                continue
            for lag in lags:
                plan = Plan(number, tree, picks, away, lag)
                figure = seconds(instance, plan)
                if figure < math.inf:
                    yield plan, figure


def best(instances: Sequence[Instance]) -> float:
    """Seconds of the best plan; infinite when there is none."""
    below = [math.inf]
    for _, figure in plans(instances, below):
        below[0] = min(below[0], figure)
    return below[0]


# The search with many plans side by side, where memory is no question.


def best_of_grid(instance: Instance) -> float:
    """As `best`, of one instance with memory for everything: nothing is ever taken away."""
    grid = np.indices([len(choices.seconds) for choices in instance.choices])
    picks = [axis.ravel() for axis in grid]
    away, available = [False] * instance.items, np.asarray(instance.available)
    todo: list[tuple[float, int, Node, Any, Any]] = []
    for number, tree in enumerate(trees(instance, tuple(range(instance.items)))):
        fits = np.flatnonzero((_needs_of_all(instance, tree, picks) <= available).all(axis=1))
        if len(fits):
            some = [pick[fits] for pick in picks]
            least = load(instance, tree, Costs(instance, some, away, None), np.maximum)
            todo.append((float(least.min()), number, tree, some, least))
    found = math.inf
    for least, _number, tree, some, loads in sorted(todo, key=lambda entry: entry[:2]):
        if least >= found:
            break
        kept = loads < found
        costs = Costs(instance, [pick[kept] for pick in some], away, None)
        for lag in instance.lags if has_split(tree) else (0,):
            try:
                steady = Timeline(instance, tree, costs, lag, np.maximum).steady()
            except CircularWait:
                continue
            found = min(found, float(np.maximum(steady, loads[kept]).min()))
    return found


def _needs_of_all(instance: Instance, tree: Node, picks: Sequence[Any]) -> Any:
    kind, parts = tree
    if kind == "leaf":
        return instance.choices[parts].devices[picks[parts]]
    needs = [_needs_of_all(instance, part, picks) for part in parts]
    return sum(needs) if kind == "split" else np.maximum.reduce(needs)
