"""Kinds of plans: the best of each that was not chosen, and why some kinds do not exist."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.compiler.schedule.instance import Instance
from rlinf_graph.compiler.schedule.items import Cut, Items
from rlinf_graph.compiler.schedule.loads import Loads
from rlinf_graph.compiler.schedule.memory import Shortage, usable
from rlinf_graph.compiler.schedule.placing import Placer
from rlinf_graph.compiler.schedule.rows import Maker, Rows, places
from rlinf_graph.compiler.schedule.solve import Answer
from rlinf_graph.compiler.schedule.tree import Tree, expanded
from rlinf_graph.ir.plan import Placement, leaves_of, mode_of

MODES = ("collocated", "disaggregated", "hybrid")

MOST_TREES = 64
"""Looked at to find what lacks least memory."""


@dataclass(frozen=True)
class Kind:
    """What people call a kind of plan: a mode, at a staleness."""

    mode: str
    staleness: int

    def keeps(self, _instance: Instance, rows: Rows) -> NDArray[np.bool_]:
        """The rows whose devices are shared as the mode has it.

        Weights that come late are of no use where nothing runs side by side.
        """
        if self.staleness and not rows.tree.splits:
            return np.zeros(len(rows.load), np.bool_)
        spans = [np.stack(span) for span in places(_instance, rows).values()]
        same, disjoint = np.ones((2, len(rows.load)), np.bool_)
        for i, (kind, start, count) in enumerate(spans):
            for other_kind, other_start, other_count in spans[:i]:
                equal = (kind == other_kind) & (start == other_start) & (count == other_count)
                ends = start + count <= other_start
                apart = (kind != other_kind) | ends | (other_start + other_count <= start)
                same &= equal
                disjoint &= equal | apart
        if self.mode in ("collocated", "single"):
            return same
        return ~same & disjoint if self.mode == "disaggregated" else ~same & ~disjoint


@dataclass(frozen=True)
class Infeasible:
    """A placement for which no layout fits, with what is missing.

    Attributes:
        placement: of the layout that lacks least.
        reason: in a few words.
        short: the device that lacks memory, when that is the reason.
        parts: bytes a device, by name, of the node that needs most there.
    """

    placement: Placement
    reason: str
    short: Shortage | None = None
    parts: tuple[tuple[str, float], ...] = ()

    @property
    def mode(self) -> str:
        """The word for the placement."""
        return mode_of(self.placement)


def least_lacking(items: Items, mode: str) -> Infeasible | None:
    """The placement of a mode that lacks least memory; None where one fits, or none is there."""
    cut = Cut(1, 1)
    roomy = _roomy(items, cut)
    if roomy is None:
        return None
    instance, numbers = roomy
    limited = replace(instance, memory=tuple(usable(g) for g in items.cluster.groups))
    maker, judge = Maker(instance, Loads(instance)), Maker(limited, Loads(limited))
    kind, least, found = Kind(mode, 0), float("inf"), None
    for tree in _trees(instance, mode):
        rows = maker.rows(tree, 0.0, float("inf"))
        rows = rows.at(kind.keeps(instance, rows))
        if not len(rows.load):
            continue
        lacking = judge.lacking(rows)
        row = int(lacking.argmin())
        if lacking[row] <= 0:
            return None
        if lacking[row] < least * (1 - 1e-9):
            picks = tuple(numbers[i][int(p)] for i, p in enumerate(rows.picks[row]))
            away = tuple(map(bool, rows.away[row]))
            made = _lacking(items, cut, Answer(0, tree, picks, away, 0, 0.0))
            least, found = (lacking[row], made) if made else (least, found)
    return found


MOST_WAYS = 4
"""Of an item, those that need least memory."""


def _roomy(items: Items, cut: Cut) -> tuple[Instance, list[list[int]]] | None:
    """The problem without a limit of memory, and which ways of each item are in it."""
    instance = items.instance(cut, fits=False)
    if instance is None:
        return None
    kept: list[list[int]] = []
    for choices in instance.choices:
        order = np.lexsort((choices.resident, choices.resident + choices.working))
        small = list(map(int, order[:MOST_WAYS]))
        widest = int(np.lexsort((choices.resident + choices.working, -choices.busy))[-1])
        kept.append(list(dict.fromkeys([*small, widest])))
    chosen = tuple(
        choices.at(np.asarray(rows)) for choices, rows in zip(instance.choices, kept, strict=True)
    )
    return replace(instance, choices=chosen, sync=None, lags=(0,)), kept


def _trees(instance: Instance, mode: str) -> list[Tree]:
    """Complete trees of a mode, those that are found first."""
    every = (1 << instance.items) - 1
    todo, found = [Tree("open" if every & (every - 1) else "leaf", every)], list[Tree]()
    while todo and len(found) < MOST_TREES:
        tree = todo.pop(0)
        if not tree.complete:
            todo += expanded(tree, instance)
        elif mode == "hybrid" or tree.splits == (mode == "disaggregated"):
            found.append(tree)
    return found


def _lacking(items: Items, cut: Cut, answer: Answer) -> Infeasible | None:
    """What a plan lacks, on the device that lacks most."""
    placed = Placer(items, cut, answer, fits=False).candidate()
    if placed is None:
        return None
    leaves, options = list(leaves_of(placed.placement)), dict(placed.options)
    followers = {f for names in items.followers.values() for f in names}
    worst: Shortage | None = None
    for device in sorted({leaf.devices[0] for leaf in leaves}):
        here = [leaf.node for leaf in leaves if device in leaf.devices]
        kept = {
            n: options[n].resident for n in here if n not in followers and n not in placed.offloaded
        }
        available = usable(items.cluster.group_of(device))
        for node in here:
            own = options[node].resident + options[node].working
            others = sum(size for n, size in kept.items() if n != node)
            if node in followers:
                unit = next(u for u, names in items.followers.items() if node in names)
                others -= sum(kept.get(m, 0.0) for m in items.units.members(unit))
            over = others + own - available
            if worst is None or over > worst.over:
                worst = Shortage(over, others + own, available, device, node, others)
    if worst is None or worst.over <= 0:
        return None
    cost = options[worst.node].cost
    reason = f"{worst.node}: {worst.over / 1e9:.1f} GB too little memory"
    return Infeasible(placed.placement, reason, worst, (*cost.resident, *cost.working))
