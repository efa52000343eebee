"""From an answer of the solver to a candidate with devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, permutations

from rlinf_graph.compiler.schedule.candidate import Candidate, with_companions
from rlinf_graph.compiler.schedule.instance import bits
from rlinf_graph.compiler.schedule.items import Cut, Items
from rlinf_graph.compiler.schedule.solve import Answer
from rlinf_graph.compiler.schedule.tree import Tree
from rlinf_graph.compiler.schedule.ways import Way
from rlinf_graph.ir.plan import Leaf, Placement, Split, Turn

Pool = tuple[tuple[int, ...], ...]
"""Devices of each node group, in the order in which they are given out."""

MOST_ORDERS = 24
"""In which the parts of a split are put on devices, at most, before a plan counts as impossible."""


@dataclass(frozen=True)
class Placer:
    """Puts the items of one answer on devices; without `fits`, memory is no limit."""

    items: Items
    cut: Cut
    answer: Answer
    fits: bool = True

    def candidate(self) -> Candidate | None:
        """The plan; None where tensor-parallel ranks would straddle machines or pins be missed."""
        placed = self._placed()
        if placed is None:
            return None
        options = {name: o for item in self._all for name, o in self._way(item).options}
        away = [item for item in self._all if self.answer.away[item]]
        units = self.items.units
        bare = with_companions(placed, self.items.followers)
        return Candidate(
            placement=_trimmed(units.spread(bare), {n: o.used for n, o in options.items()}),
            options=tuple(options.items()),
            chunks=self.cut.chunks,
            staleness=self.answer.lag,
            offloaded=frozenset(n for item in away for n in units.members(self.items.names[item])),
            groups=self.cut.groups,
            bound=self.answer.seconds,
        )

    @property
    def _all(self) -> range:
        return range(len(self.items.names))

    def _way(self, item: int) -> Way:
        ways = self.items.fitting if self.fits else self.items.ways
        return ways(item, self.cut)[self.answer.picks[item]]

    def _placed(self) -> Placement | None:
        pool, first = list[tuple[int, ...]](), 0
        for group in self.items.cluster.groups:
            pool.append(tuple(range(first, first + group.size)))
            first += group.size
        return self._part(self.answer.tree, tuple(pool))

    def _part(self, tree: Tree, pool: Pool) -> Placement | None:
        """A part on the first devices of a pool that it needs."""
        if tree.kind == "leaf":
            return self._leaf(bits(tree.items)[0], pool)
        if tree.kind == "split":
            return self._split(tree, pool)
        parts: list[Placement] = []
        for part in tree.parts:
            own = self._pinned_first(part, self._pinned_first(tree, pool))
            made = self._part(part, self._taken(part, own))
            if made is None:
                return None
            parts.append(made)
        return Turn(per="micro_batch" if tree.kind == "micro" else "iteration", parts=tuple(parts))

    def _leaf(self, item: int, pool: Pool) -> Placement | None:
        way, pin = self._way(item), self.items.pin(item)
        devices = (pin or pool[way.group])[: way.devices]
        if len(devices) < way.devices or not set(devices) <= set(pool[way.group]):
            return None
        if any(self._straddles(devices, o.settings.parallel.tp) for _name, o in way.options):
            return None
        return Leaf(node=self.items.names[item], devices=devices)

    def _straddles(self, devices: Sequence[int], tp: int) -> bool:
        """Whether some tensor-parallel ranks are on different machines."""
        if tp == 1:
            return False
        machines = self.items.cluster.domains_of(devices).reshape(-1, tp)
        return bool((machines != machines[:, :1]).any())

    def _split(self, tree: Tree, pool: Pool) -> Placement | None:
        """Parts one behind the other, in another order only where ranks would straddle machines.

        Those with much tensor parallelism come first then.
        """
        width = {part: max(self._tp(item) for item in bits(part.items)) for part in tree.parts}
        aligned = sorted(tree.parts, key=lambda part: -width[part])
        for tried, order in enumerate(chain([tree.parts], permutations(aligned))):
            made = self._in_order(order, pool)
            if made is not None:
                return Split(parts=tuple(made[part] for part in tree.parts))
            if tried >= MOST_ORDERS:
                break
        return None

    def _in_order(self, order: Sequence[Tree], pool: Pool) -> dict[Tree, Placement] | None:
        pins = {part: self._pins(part) for part in order}
        every = frozenset[int]().union(*pins.values())
        left, made = pool, dict[Tree, Placement]()
        for part in order:
            others = every - pins[part]
            free = tuple(tuple(d for d in ids if d not in others) for ids in left)
            mine = self._taken(part, self._pinned_first(part, free))
            placed = self._part(part, mine)
            if placed is None:
                return None
            made[part] = placed
            used = {d for ids in mine for d in ids}
            left = tuple(tuple(d for d in ids if d not in used) for ids in left)
        return made

    def _tp(self, item: int) -> int:
        return max(option.settings.parallel.tp for _name, option in self._way(item).options)

    def _pins(self, tree: Tree) -> frozenset[int]:
        return frozenset(d for item in bits(tree.items) for d in self.items.pin(item) or ())

    def _pinned_first(self, tree: Tree, pool: Pool) -> Pool:
        """A pool with pinned devices in front, so that what shares devices with a pin finds them.

        What is pinned to fewer devices comes first.
        """
        pins = sorted((self.items.pin(i) or () for i in bits(tree.items)), key=len)
        front = list(dict.fromkeys(device for pin in pins for device in pin))
        if not front:
            return pool
        inside = set(front)
        return tuple(
            (*(d for d in front if d in set(ids)), *(d for d in ids if d not in inside))
            for ids in pool
        )

    def _taken(self, tree: Tree, pool: Pool) -> Pool:
        """The first of a pool, as many as a part needs."""
        counts = self._needs(tree)
        return tuple(ids[:count] for ids, count in zip(pool, counts, strict=True))

    def _needs(self, tree: Tree) -> tuple[int, ...]:
        if tree.kind == "leaf":
            way = self._way(bits(tree.items)[0])
            return tuple(
                way.devices if group == way.group else 0
                for group in range(len(self.items.cluster.groups))
            )
        counts = zip(*(self._needs(part) for part in tree.parts), strict=True)
        if tree.kind == "split":
            return tuple(map(sum, counts))
        pinned = self.items.pinned(tree.items)
        return tuple(max(*each, given) for each, given in zip(counts, pinned, strict=True))


def _trimmed(placement: Placement, used: dict[str, int]) -> Placement:
    """Every leaf on as many devices as its layout uses: evaluations, and nodes of loops."""
    if isinstance(placement, Leaf):
        return placement.model_copy(update={"devices": placement.devices[: used[placement.node]]})
    made = tuple(_trimmed(part, used) for part in placement.parts)
    return placement.model_copy(update={"parts": made})
