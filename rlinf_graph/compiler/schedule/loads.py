"""Least seconds of the busiest device, for sets of items: a bound for every tree over them.

A load is what a device has to do in an iteration. Of parts that take turns loads add up on the
same devices; of parts side by side the larger one counts. Memory and switches are left out.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rlinf_graph.compiler.schedule.chains import Chain, chains_of
from rlinf_graph.compiler.schedule.instance import Instance, Seconds, bits
from rlinf_graph.compiler.schedule.partition import Menu, Problem, divide, stages_of
from rlinf_graph.compiler.schedule.tree import Tree

EXACT = 8
"""Items whose least load is worked out over all trees; of more, by the work that there is."""


@dataclass
class Loads:
    """Fronts of devices and seconds, worked out once for each set of items."""

    instance: Instance
    _known: dict[int, Menu] = field(default_factory=dict[int, Menu])
    _single: dict[int, Menu] = field(default_factory=dict[int, Menu])
    _trees: dict[Tree, Menu] = field(default_factory=dict[Tree, Menu])
    _lines: dict[tuple[Tree, int], Menu] = field(default_factory=dict[tuple[Tree, int], Menu])

    def of(self, items: int) -> Menu:
        """The front of the best tree over a set; the empty set needs nothing."""
        if items not in self._known:
            if items & (items - 1) == 0:
                self._known[items] = self._item(items)
            elif items.bit_count() > EXACT:
                self._known[items] = self._area(items)
            else:
                pairs = [(self.of(s), self.of(items ^ s)) for s in stages_of(items) if s != items]
                made = [self._turn(a, b) for a, b in pairs] + [self._split(a, b) for a, b in pairs]
                self._known[items] = _joined(made)
        return self._known[items]

    def _area(self, items: int) -> Menu:
        """A lower front for many items: no device does more than its part of all their work."""
        members = [(self.instance.choices[i].devices, self.instance.busy(i)) for i in bits(items)]
        if not all(len(busy) for _devices, busy in members):
            return Menu.of(members[0][0][:0], members[0][1][:0])
        work = sum(float((devices.sum(axis=1) * busy).min()) for devices, busy in members)
        counts = np.unique(np.concatenate([devices for devices, _busy in members]), axis=0)
        if counts.shape[1] > 1:  # of several types together only what all devices can do is bounded
            counts = counts[:1] * 0
            least = max(float(busy.min()) for _devices, busy in members)
            return Menu.of(counts, np.asarray([max(least, work / sum(self.instance.available))]))
        counts = np.append(counts, [self.instance.available], axis=0)
        longest = np.max(
            [
                np.where(counts >= devices.T, busy[None, :], np.inf).min(axis=1)
                for devices, busy in members
            ],
            axis=0,
        )
        return Menu.of(counts, np.maximum(longest, work / counts[:, 0]))

    def tree(self, tree: Tree, within: int = -1) -> Menu:
        """The front of a tree with its open parts at their best, restricted to some items."""
        items = tree.items & within
        if tree.kind.startswith("open") or items & (items - 1) == 0:
            return self.of(items)
        key = tree if within == -1 else None
        if key is not None and key in self._trees:
            return self._trees[key]
        parts = [self.tree(part, within) for part in tree.parts if part.items & within]
        made = parts[0]
        for part in parts[1:]:
            made = self._split(made, part) if tree.kind == "split" else self._turn(made, part)
        if key is not None:
            self._trees[key] = made
        return made

    def bound(self, tree: Tree) -> float:
        """Seconds that an iteration of no plan with this tree can beat.

        Where no weights may come late, what a barrier waits for and what waits for it are in
        different times.
        """
        load = _least(self.tree(tree))
        if self._fresh and np.isfinite(load):
            for first, second in self._barriers:
                load = max(load, _least(self.tree(tree, first)) + _least(self.tree(tree, second)))
        for chain in self.chains:
            if np.isfinite(load):
                line = self.least_line(tree, chain) + self.instance.taking_over(chain.reader)
                load = max(load, line / chain.laps)
        return load

    @cached_property
    def chains(self) -> tuple[Chain, ...]:
        """Items that work one after another."""
        return chains_of(self.instance)

    def least_line(self, tree: Tree, chain: Chain) -> float:
        """Seconds of all items of a chain together, at least, on the devices of a tree."""
        return _least(self._line(tree, chain.items))

    def _line(self, tree: Tree, within: int) -> Menu:
        """The front of devices and summed seconds; open parts have all devices for each item."""
        items = tree.items & within
        if tree.kind.startswith("open") or items & (items - 1) == 0:
            return self._alone(items)
        key = (tree, within)
        if key not in self._lines:
            parts = [self._line(part, within) for part in tree.parts if part.items & within]
            made = parts[0]
            for part in parts[1:]:
                made = self._beside(made, part) if tree.kind == "split" else self._turn(made, part)
            self._lines[key] = made
        return self._lines[key]

    def least(self, tree: Tree) -> float:
        """Seconds of the busiest device of a tree, at least."""
        return _least(self.tree(tree))

    def division(self) -> list[int]:
        """Sets of items that take turns on devices of their own: the best such plan by load."""
        sets = range(1, 1 << self.instance.items)
        menus = {items: menu for items in sets if len((menu := self._turns(items)).seconds)}
        problem = Problem(
            nodes=self.instance.items,
            available=self.instance.available,
            menus=menus,
            score=lambda _total, slowest: slowest,
        )
        found = divide(problem)
        return [stage.nodes for stage in found.stages] if found else []

    def _alone(self, items: int) -> Menu:
        """As if all items of a set had the same devices and only one after another worked."""
        if items not in self._single:
            made = self._item(0)
            if items:
                last = items.bit_length() - 1
                own = self._menu(last, self.instance.choices[last].seconds)
                made = self._turn(self._alone(items ^ 1 << last), own)
            self._single[items] = made
        return self._single[items]

    def _turns(self, items: int) -> Menu:
        made = self.of(items & -items)
        for item in bits(items ^ (items & -items)):
            made = self._turn(made, self.of(1 << item))
        return made

    @cached_property
    def _fresh(self) -> bool:
        return self.instance.lags == (0,)

    @cached_property
    def _barriers(self) -> list[tuple[int, int]]:
        """What comes before a barrier, and what it holds up on the way to the next weights."""
        instance, found = self.instance, list[tuple[int, int]]()
        for place, step in enumerate(instance.steps):
            first = self._items(instance.before[place])
            if step.barrier and first:
                for trainer in self._awaited(first):
                    way = instance.before[trainer] | {trainer}
                    after = {p for p in way if p == place or place in instance.before[p]}
                    found += [(first, second)] if (second := self._items(after)) else []
        return found

    def _items(self, steps: Set[int]) -> int:
        return sum(1 << step.item for p in steps if (step := self.instance.steps[p]).item >= 0)

    def _awaited(self, items: int) -> set[int]:
        """The trainers whose last weights all items wait for, themselves or through others."""
        instance, roots = self.instance, list[set[int]]()
        for item in bits(items):
            place = instance.step_of[item]
            if not self._items(instance.before[place]):
                reads = instance.steps[place].reads
                roots.append({read.trainer for read in reads if not read.late})
        return set[int].intersection(*roots) if roots else set()

    def _item(self, items: int) -> Menu:
        if not items:
            return Menu.of(np.zeros((1, len(self.instance.available)), np.int64), np.zeros(1))
        item = bits(items)[0]
        return self._menu(item, self.instance.busy(item))

    def _menu(self, item: int, seconds: Seconds) -> Menu:
        devices = self.instance.choices[item].devices
        there = (devices <= np.asarray(self.instance.available)).all(axis=1)
        return Menu.of(devices[there], seconds[there])

    def _turn(self, a: Menu, b: Menu) -> Menu:
        return Menu.of(
            np.maximum(a.devices[:, None, :], b.devices[None, :, :]).reshape(
                -1, a.devices.shape[1]
            ),
            (a.seconds[:, None] + b.seconds[None, :]).ravel(),
        )

    def _split(self, a: Menu, b: Menu) -> Menu:
        return self._apart(a, b, np.maximum(a.seconds[:, None], b.seconds[None, :]).ravel())

    def _beside(self, a: Menu, b: Menu) -> Menu:
        return self._apart(a, b, (a.seconds[:, None] + b.seconds[None, :]).ravel())

    def _apart(self, a: Menu, b: Menu, seconds: Seconds) -> Menu:
        devices = (a.devices[:, None, :] + b.devices[None, :, :]).reshape(-1, a.devices.shape[1])
        fits = (devices <= np.asarray(self.instance.available)).all(axis=1)
        return Menu.of(devices[fits], seconds[fits])


def _joined(menus: Sequence[Menu]) -> Menu:
    return Menu.of(
        np.concatenate([m.devices for m in menus]), np.concatenate([m.seconds for m in menus])
    )


def _least(menu: Menu) -> float:
    return float(menu.seconds.min()) if len(menu.seconds) else float("inf")
