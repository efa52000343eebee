"""Every candidate of the modelled space, with its bound; and what does not fit, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

from rlinf_graph.compiler.check_plan import device_nodes
from rlinf_graph.compiler.schedule.bound import Bounds
from rlinf_graph.compiler.schedule.candidate import (
    Candidate,
    companions,
    divided,
    with_companions,
)
from rlinf_graph.compiler.schedule.layouts import Layouts, Option
from rlinf_graph.compiler.schedule.memory import Shortage, find_offloads
from rlinf_graph.compiler.schedule.pins import Pin
from rlinf_graph.compiler.schedule.regions import Units
from rlinf_graph.compiler.schedule.trees import Shape, shapes
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.flow import in_order
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.plan import Leaf, Placement, Split, Turn, leaves_of, mode_of

CHUNKS = (1, 2, 4, 8, 16)
GROUPS = (1, 2, 4)
"""Of a loop region's samples."""

MOST_STALENESS = 4
SMALL = 4


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


@dataclass
class Space:
    """The plans of a graph on a cluster."""

    graph: Graph
    cluster: Cluster
    layouts: Layouts
    bounds: Bounds
    pins: dict[str, Pin]

    def __post_init__(self) -> None:
        """Find who stands beside whom, and what may vary."""
        self._shared = companions(self.graph)
        placed = {node.name for node in device_nodes(self.graph)} - set(self._shared)
        names = [node.name for node in in_order(self.graph) if node.name in placed]
        self._units = Units(self.graph, names)
        self._followers: dict[str, list[str]] = {}
        for follower, leader in self._shared.items():
            self._followers.setdefault(self._units.unit(leader), []).append(follower)
        regions = list(self.graph.with_role(Role.REGION))
        self._groups = sorted({divided(self.graph, r, g) for r in regions for g in GROUPS} | {1})
        bounds = [
            node.option("max_staleness") - node.option("every") + 1
            for node in self.graph.syncs().values()
        ]
        self._staleness = range(min(MOST_STALENESS, max(bounds, default=0)) + 1)

    def candidates(self) -> Iterator[Candidate | Infeasible]:
        """All of them, simple placements first."""
        for shape in shapes(self._units.names, self._units.flow):
            for count in counts(self.cluster.size):
                for bare in self._placements(shape, tuple(range(count))):
                    if self._respects_pins(self._units.spread(bare)):
                        whole = with_companions(bare, self._followers)
                        yield from self._layouts_of(self._units.spread(whole))

    def _layouts_of(self, placement: Placement) -> Iterator[Candidate | Infeasible]:
        leaves = list(leaves_of(placement))
        missing: Infeasible | None = None
        found = False
        cuts = product(CHUNKS if any_split(placement) else (1,), self._groups)
        for chunks, groups in cuts:
            leaders = [leaf for leaf in leaves if leaf.node not in self._shared]
            fronts = [self._options(x, chunks, groups) for x in leaders]
            for leaf, front in zip(leaders, fronts, strict=True):
                if not front and chunks == groups == 1:
                    text = f"{leaf.node}: no division of its batch by {len(leaf.devices)}"
                    missing = missing or Infeasible(placement, text)
            for choice in product(*fronts):
                chosen = {x.node: option for x, option in zip(leaders, choice, strict=True)}
                self._follow(chosen, leaves, chunks)
                made = self._fitted(placement, chosen, chunks, groups)
                if isinstance(made, Infeasible):
                    missing = _nearer(missing, made)
                    continue
                found = True
                yield from made
        if not found and missing is not None:
            yield missing

    def _options(self, leaf: Leaf, chunks: int, groups: int) -> list[Option]:
        """Of a leader; a node of a region streams in the region's groups."""
        region = self.graph.node(leaf.node).region
        if region:
            chunks = divided(self.graph, self.graph.node(region), groups)
        return self.layouts.options(leaf.node, leaf.devices, chunks)

    def _follow(self, chosen: dict[str, Option], leaves: list[Leaf], chunks: int) -> None:
        """Give every follower its fastest layout on the devices of the node it accompanies."""
        for leaf in leaves:
            if leaf.node in self._shared:
                used = chosen[self._shared[leaf.node]].used
                front = self.layouts.options(leaf.node, leaf.devices[:used], chunks)
                chosen[leaf.node] = next((o for o in front if o.used == used), front[0])

    def _fitted(
        self, placement: Placement, options: dict[str, Option], chunks: int, groups: int
    ) -> list[Candidate] | Infeasible:
        trimmed = _trim(placement, options)
        leaves = list(leaves_of(trimmed))
        fit = find_offloads(leaves, options, self.cluster, self._shared)
        if isinstance(fit, Shortage):
            reason = f"{fit.node}: {fit.over / 1e9:.1f} GB too little memory"
            cost = options[fit.node].cost
            return Infeasible(trimmed, reason, fit, (*cost.resident, *cost.working))
        load = self.bounds.load(leaves, options, fit)
        latency = self.bounds.latency(options)
        lags = self._staleness if any_split(placement) else (0,)
        return [
            Candidate(trimmed, tuple(options.items()), chunks, lag, fit, groups,
                      max(load, latency / (lag + 1)))
            for lag in lags
        ]  # fmt: skip

    def _placements(self, shape: Shape, devices: tuple[int, ...]) -> Iterator[Placement]:
        if shape.kind == "leaf":
            yield Leaf(node=shape.names[0], devices=devices)
        elif shape.kind == "turn":
            for parts in product(*(list(self._placements(p, devices)) for p in shape.parts)):
                yield Turn(parts=parts)
        else:
            for sizes in divisions(len(devices), len(shape.parts), self._grain(devices)):
                for blocks in self._blocks(sizes, devices):
                    choices = [
                        list(self._placements(part, block))
                        for part, block in zip(shape.parts, blocks, strict=True)
                    ]
                    for parts in product(*choices):
                        yield Split(parts=parts)

    def _blocks(
        self, sizes: tuple[int, ...], devices: tuple[int, ...]
    ) -> Iterator[list[tuple[int, ...]]]:
        """Consecutive devices for parts of these sizes: in order, or in any when some are pinned.

        Equal devices are interchangeable, so that without pins one order stands for all.
        """
        orders = permutations(range(len(sizes))) if self.pins else [tuple(range(len(sizes)))]
        for order in orders:
            blocks: list[tuple[int, ...]] = [()] * len(sizes)
            start = 0
            for part in order:
                blocks[part] = devices[start : start + sizes[part]]
                start += sizes[part]
            yield blocks

    def _grain(self, devices: tuple[int, ...]) -> int:
        """Blocks are multiples of this: single devices as long as there are few."""
        return max(1, len(devices) // 16)

    def _respects_pins(self, placement: Placement) -> bool:
        return all(
            self.pins[leaf.node].devices in (None, leaf.devices)
            for leaf in leaves_of(placement)
            if leaf.node in self.pins
        )


def counts(devices: int) -> list[int]:
    """How many devices a plan may use: all of them, or fewer, which can be faster for small work.

    Every number up to four, halves of larger clusters.
    """
    if devices <= SMALL:
        return list(range(devices, 0, -1))
    return [devices, *counts(devices // 2)]


def any_split(placement: Placement) -> bool:
    """Whether anything runs side by side."""
    if isinstance(placement, Leaf):
        return False
    return isinstance(placement, Split) or any(any_split(part) for part in placement.parts)


def divisions(total: int, parts: int, grain: int) -> Iterator[tuple[int, ...]]:
    """The ways to cut `total` into so many positive multiples of `grain`, the rest to the last."""
    if parts == 1:
        yield (total,)
        return
    for first in range(grain, total - grain * (parts - 1) + 1, grain):
        for rest in divisions(total - first, parts - 1, grain):
            yield (first, *rest)


def _trim(placement: Placement, options: dict[str, Option]) -> Placement:
    """Every leaf on the devices that its layout uses; the others stay idle for it."""
    if isinstance(placement, Leaf):
        count = options[placement.node].settings.parallel.devices
        return placement.model_copy(update={"devices": placement.devices[:count]})
    made = tuple(_trim(part, options) for part in placement.parts)
    return placement.model_copy(update={"parts": made})


def _nearer(old: Infeasible | None, new: Infeasible) -> Infeasible:
    """Of two reasons, the one that lacks less."""
    if old is None or old.short is None or new.short is None:
        return old or new
    return new if new.short.over < old.short.over else old
