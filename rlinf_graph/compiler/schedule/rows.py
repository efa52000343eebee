"""Every choice of devices and layouts for one tree, side by side: what fits, and what it loads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.compiler.schedule.instance import Counts, Instance, Seconds, bits
from rlinf_graph.compiler.schedule.loads import Loads
from rlinf_graph.compiler.schedule.tree import Tree

Flags = NDArray[np.bool_]

MOST_ROWS = 1 << 21
"""Of two parts together; where there are more, those with most load are left out."""


@dataclass(frozen=True)
class Rows:
    """Plans of one tree, without its staleness.

    Attributes:
        tree: of all of them.
        picks: int64 `(rows, items)`, a choice of each item; 0 for items outside the tree.
        away: bool `(rows, items)`, whether what an item keeps leaves the device between turns.
        devices: int64 `(rows, types)`.
        load: float64 `(rows,)`, seconds of the busiest device, switches included.
        dropped: no row that was left out for their number has a smaller load.
    """

    tree: Tree
    picks: Counts
    away: Flags
    devices: Counts
    load: Seconds
    dropped: float = float("inf")

    def at(self, rows: Counts | Flags) -> Rows:
        """Some of them."""
        return Rows(
            self.tree, self.picks[rows], self.away[rows], self.devices[rows], self.load[rows],
            self.dropped,
        )  # fmt: skip


@dataclass(frozen=True)
class Maker:
    """Makes the rows of trees over one instance. `loads` are the least of any plan."""

    instance: Instance
    loads: Loads

    def rows(self, tree: Tree, floor: float, limit: float) -> Rows:
        """Those that fit and whose load is at least `floor` and below `limit`."""
        made = self._part(tree, limit, shares=False)
        made = made.at(made.load >= floor)
        return made.at(self.lacking(made) <= 0)

    def _part(self, tree: Tree, limit: float, shares: bool) -> Rows:
        """The rows of a part. In turns, others need their time of the limit, too."""
        if tree.kind == "leaf":
            return self._leaf(tree, limit, shares)
        turns = tree.kind != "split"
        shares = (shares or tree.kind == "turn") and tree.kind != "micro"
        least = [self.loads.least(part) if turns else 0.0 for part in tree.parts]
        spent = sum(least)
        made: Rows | None = None
        for part, own in zip(tree.parts, least, strict=True):
            rows = self._part(part, limit - spent + own, shares)
            made = rows if made is None else self._joined(tree, made, rows, limit, turns)
        if made is None:
            raise ValueError("a tree without parts")
        return made

    def _leaf(self, tree: Tree, limit: float, moves: bool) -> Rows:
        item = bits(tree.items)[0]
        choices = self.instance.choices[item]
        picks = np.zeros((len(choices.seconds), self.instance.items), np.int64)
        picks[:, item] = np.arange(len(picks))
        away = np.zeros(picks.shape, np.bool_)
        busy = self.instance.busy(item)
        made = Rows(tree, picks, away, choices.devices, busy)
        if moves:
            out = away.copy()
            out[:, item] = True
            load = busy + choices.switch
            made = _both(made, Rows(tree, picks, out, choices.devices, load))
        there = (made.devices <= np.asarray(self.instance.available)).all(axis=1)
        return made.at((made.load < limit) & there)

    def _joined(self, tree: Tree, a: Rows, b: Rows, limit: float, turns: bool) -> Rows:
        first, second = np.arange(len(a.load)), np.arange(len(b.load))
        beside_a, beside_b = (_least(b.load), _least(a.load)) if turns else (0.0, 0.0)
        dropped = min(a.dropped + beside_a, b.dropped + beside_b)
        while len(first) * len(second) > MOST_ROWS:
            of_a = len(first) > len(second)
            longer, rows, beside = (first, a, beside_a) if of_a else (second, b, beside_b)
            order = longer[np.argsort(rows.load[longer], kind="stable")]
            dropped = min(dropped, float(rows.load[order[len(order) // 2]]) + beside)
            order = order[: len(order) // 2]
            first, second = (order, second) if of_a else (first, order)
        x, y = np.repeat(first, len(second)), np.tile(second, len(first))
        if turns:
            kept = np.flatnonzero(a.load[x] + b.load[y] < limit)
            x, y = x[kept], y[kept]
            devices, load = np.maximum(a.devices[x], b.devices[y]), a.load[x] + b.load[y]
        else:
            devices = a.devices[x] + b.devices[y]
            kept = np.flatnonzero((devices <= np.asarray(self.instance.available)).all(axis=1))
            x, y, devices = x[kept], y[kept], devices[kept]
            load = np.maximum(a.load[x], b.load[y])
        return Rows(tree, a.picks[x] + b.picks[y], a.away[x] | b.away[y], devices, load, dropped)

    def lacking(self, rows: Rows) -> Seconds:
        """Bytes that the device in greatest need lacks; not above 0 where all fit.

        While an item runs, the device holds what it keeps and works with, and what others keep
        that are not away. Which items meet on a device changes only where one of them begins.
        """
        instance, count = self.instance, len(rows.load)
        spans = places(instance, rows)
        kept, need = np.zeros((count, instance.items)), np.zeros((count, instance.items))
        for item in bits(rows.tree.items):
            choices, pick = instance.choices[item], rows.picks[:, item]
            out, resident = rows.away[:, item], choices.resident[pick]
            kept[:, item] = np.where(out, 0.0, resident)
            need[:, item] = choices.working[pick] + np.where(out, resident, 0.0)
        worst = np.full(count, -np.inf)
        memory = np.asarray(instance.memory)
        for item, (kind, start, _length) in spans.items():
            there = np.stack(
                [
                    (k == kind) & (s <= start) & (start < s + n)
                    if other != item
                    else np.ones(count, np.bool_)
                    for other, (k, s, n) in spans.items()
                ]
            )
            others = list(spans)
            held = (kept[:, others].T * there).sum(axis=0)
            most = (need[:, others].T * there).max(axis=0)
            worst = np.maximum(worst, held + most - memory[kind])
        return worst


def places(instance: Instance, rows: Rows) -> dict[int, tuple[Counts, Counts, Counts]]:
    """By item the type of its devices, the first of them and how many, for each row."""
    found: dict[int, tuple[Counts, Counts, Counts]] = {}

    def visit(tree: Tree, start: Counts) -> Counts:
        """Returns the devices of each type that a part takes."""
        if tree.kind == "leaf":
            item = bits(tree.items)[0]
            devices = instance.choices[item].devices[rows.picks[:, item]]
            kind = devices.argmax(axis=1)
            row = np.arange(len(kind))
            found[item] = kind, start[row, kind], devices[row, kind]
            return devices
        size = np.zeros_like(start)
        for part in tree.parts:
            if tree.kind == "split":
                size = size + visit(part, start + size)
            else:
                size = np.maximum(size, visit(part, start))
        return size

    visit(rows.tree, np.zeros((len(rows.load), len(instance.available)), np.int64))
    return found


def _least(load: Seconds) -> float:
    return float(load.min()) if len(load) else float("inf")


def _both(a: Rows, b: Rows) -> Rows:
    return Rows(
        a.tree,
        np.concatenate([a.picks, b.picks]),
        np.concatenate([a.away, b.away]),
        np.concatenate([a.devices, b.devices]),
        np.concatenate([a.load, b.load]),
    )
