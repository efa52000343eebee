"""A graph on a cluster as a problem in numbers, and what its numbers stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import networkx as nx
import numpy as np

from rlinf_graph.compiler.check_plan import device_nodes
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.lower import cadence
from rlinf_graph.compiler.schedule.candidate import companions, divided
from rlinf_graph.compiler.schedule.instance import Choices, Instance, Read, Span, Step, bits
from rlinf_graph.compiler.schedule.layouts import Layouts
from rlinf_graph.compiler.schedule.memory import usable
from rlinf_graph.compiler.schedule.pins import FREE, Pins
from rlinf_graph.compiler.schedule.regions import Units
from rlinf_graph.compiler.schedule.ways import Way, Ways
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.flow import in_order
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Port, Role, Unit

CHUNKS = (1, 2, 4, 8, 16)
"""Micro-batches of every edge that streams."""

GROUPS = (1, 2, 4)
"""Of a loop region's samples."""

MOST_STALENESS = 8


@dataclass(frozen=True)
class Cut:
    """Into how many parts samples are cut: those that stream, and those of loops."""

    chunks: int
    groups: int


@dataclass
class Items:
    """The items of a graph.

    Attributes:
        graph, cluster, costs: what is planned.
        layouts: of single nodes.
        pins: what is given.
    """

    graph: Graph
    cluster: Cluster
    costs: CostModel
    layouts: Layouts
    pins: Pins
    _ways: dict[tuple[int, Cut], list[Way]] = field(
        default_factory=dict[tuple[int, Cut], list[Way]]
    )
    _syncs: dict[tuple[str, Span, Span], float] = field(
        default_factory=dict[tuple[str, Span, Span], float]
    )

    def __post_init__(self) -> None:
        """Find what gets devices as one."""
        shared = companions(self.graph)
        placed = {node.name for node in device_nodes(self.graph)} - set(shared)
        names = [node.name for node in in_order(self.graph) if node.name in placed]
        self.units = Units(self.graph, names)
        self.followers: dict[str, list[str]] = {}
        for follower, leader in shared.items():
            self.followers.setdefault(self.units.unit(leader), []).append(follower)
        self._made = Ways(
            self.graph, self.cluster, self.costs, self.layouts, self.units, self.followers
        )

    @property
    def names(self) -> list[str]:
        """Of the items, in the order of the flow."""
        return self.units.names

    def nodes(self, item: int) -> list[str]:
        """Everything that stands where an item stands."""
        name = self.names[item]
        return [*self.units.members(name), *self.followers.get(name, [])]

    def pin(self, item: int) -> tuple[int, ...] | None:
        """The devices an item is pinned to; none where its nodes are to be on different ones."""
        pins = {d for n in self.nodes(item) if (d := self.pins.nodes.get(n, FREE).devices)}
        return None if not pins else pins.pop() if len(pins) == 1 else ()

    def pinned(self, items: int) -> list[int]:
        """Devices of each node group to which any of some items is pinned; a set, as bits."""
        pins = {device for item in bits(items) for device in self.pin(item) or ()}
        groups = self.cluster.groups
        return [sum(self.cluster.group_of(d) is group for d in pins) for group in groups]

    def stays(self, item: int) -> bool | None:
        """Whether an item is to stay on its devices between turns; None where that is free."""
        pins = {self.pins.nodes.get(name, FREE).resident for name in self.nodes(item)} - {None}
        return pins.pop() if len(pins) == 1 else None

    def cuts(self) -> list[Cut]:
        """All that can be told apart, few parts first."""
        regions = list(self.graph.with_role(Role.REGION))
        groups = sorted({divided(self.graph, r, g) for r in regions for g in GROUPS} | {1})
        given = self.pins.plan.chunks
        return [Cut(chunks, g) for chunks in ([given] if given else CHUNKS) for g in groups]

    def lags(self) -> tuple[int, ...]:
        """Values of the staleness."""
        bounds = [
            node.option("max_staleness") - node.option("every") + 1
            for node in self.graph.syncs().values()
        ]
        most, given = max([0, *bounds]), self.pins.plan.staleness
        if given is not None:
            return (given,) if given <= most else ()
        return tuple(range(min(MOST_STALENESS, most) + 1))

    def ways(self, item: int, cut: Cut) -> list[Way]:
        """The ways of an item on all node groups that its pins allow."""
        if (item, cut) not in self._ways:
            pin, name = self.pin(item), self.names[item]
            self._ways[item, cut] = [
                way
                for group in self.cluster.groups
                for way in self._made.of(name, group, cut.chunks, cut.groups)
                if pin is None or self._stands(way, pin)
            ]
        return self._ways[item, cut]

    def _stands(self, way: Way, pin: tuple[int, ...]) -> bool:
        group = self.cluster.groups[way.group]
        return way.devices <= len(pin) and self.cluster.groups_of(pin) == (group,)

    def fitting(self, item: int, cut: Cut) -> list[Way]:
        """The ways of an item that fit on their devices when nothing else is there."""
        room = [usable(group) for group in self.cluster.groups]
        return [w for w in self.ways(item, cut) if w.resident + w.working <= room[w.group]]

    def instance(self, cut: Cut, *, fits: bool = True) -> Instance | None:
        """The problem with samples cut so; None where some item cannot run at all.

        Without `fits`, memory is no limit.
        """
        items = range(len(self.names))
        ways = [self.fitting(i, cut) if fits else self.ways(i, cut) for i in items]
        if not ways or not all(ways) or not self.lags():
            return None
        together, apart = self._rivals()
        unlimited = float("inf")
        return Instance(
            choices=tuple(map(self._choices, ways)),
            steps=self._steps(cut),
            available=tuple(group.size for group in self.cluster.groups),
            memory=tuple(usable(g) if fits else unlimited for g in self.cluster.groups),
            chunks=cut.chunks,
            lags=self.lags(),
            sync=self.sync_seconds,
            least_sync=tuple(self._least_sync(item, ways) for item in items),
            together=together,
            apart=apart,
        )

    def sync_seconds(self, trainer: int, _reader: int, source: Span, target: Span) -> float:
        """Seconds of one delivery, with the first of the devices at the begin of a machine."""
        model = self.graph.node(self.names[trainer]).model or ""
        if (model, source, target) not in self._syncs:
            places = [self._place(span, source, target) for span in (source, target)]
            copied = set(places[1]) <= set(places[0])
            method = "copy" if copied else "broadcast"
            cost = self.costs.sync(model, places[0], places[1], method)
            self._syncs[model, source, target] = cost.seconds
        return self._syncs[model, source, target]

    def _least_sync(self, item: int, ways: list[list[Way]]) -> float:
        """Of all deliveries to an item in an iteration, wherever the trainer and it stand."""
        total, sizes = 0.0, [group.size for group in self.cluster.groups]
        for trainer, every in self._delivered(item):
            sources, targets = (
                sorted({(w.group, w.devices) for w in ways[each]}) for each in (trainer, item)
            )
            total += min(
                self.sync_seconds(trainer, item, (g, 0, n), (k, start, m)) / every
                for (g, n), (k, m) in product(sources, targets)
                for start in (0, n)
                if start + m <= sizes[k] and (start == 0 or g == k)
            )
        return total

    def _delivered(self, item: int) -> Iterator[tuple[int, int]]:
        """The trainers, as items, whose weights an item takes over, and how seldom."""
        order = {name: place for place, name in enumerate(self.names)}
        for read in self._reads(self.names[item], order):
            yield read.trainer, read.every

    def _place(self, span: Span, *others: Span) -> range:
        kind, start, count = span
        least = min(other[1] for other in others if other[0] == kind)
        first = self.cluster.first_of(self.cluster.groups[kind]) + start - least
        return range(first, first + count)

    def _choices(self, ways: list[Way]) -> Choices:
        devices = np.zeros((len(ways), len(self.cluster.groups)), np.int64)
        devices[np.arange(len(ways)), [way.group for way in ways]] = [w.devices for w in ways]
        columns = ("seconds", "tail", "resident", "working", "switch", "after")
        return Choices(
            devices, *(np.asarray([getattr(w, c) for w in ways], np.float64) for c in columns)
        )

    def _rivals(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Items that pins keep on the same devices, and those that they keep apart."""
        pins = [self.pin(item) for item in range(len(self.names))]
        if not any(pins):
            return (), ()
        together, apart = [0] * len(pins), [0] * len(pins)
        for i, mine in enumerate(pins):
            for j, theirs in enumerate(pins):
                if i != j and mine and theirs:
                    rivals = together if set(mine) & set(theirs) else apart
                    rivals[i] |= 1 << j
        return tuple(together), tuple(apart)

    def _steps(self, cut: Cut) -> tuple[Step, ...]:
        order = list(nx.lexicographical_topological_sort(self.units.flow, key=self._position))
        places = {name: place for place, name in enumerate(order)}
        return tuple(self._step(name, places, cut) for name in order)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {node.name: place for place, node in enumerate(in_order(self.graph))}

    def _position(self, name: str) -> int:
        return self._positions.get(name, 0)

    def _step(self, name: str, places: dict[str, int], cut: Cut) -> Step:
        node = self.graph.node(name)
        inputs = tuple(sorted(places[p] for p in self.units.flow.predecessors(name)))
        if name not in self.names:
            seconds = self._made.host_seconds(node, cut.groups)
            return Step(seconds=seconds, barrier=node.unit is Unit.BATCH, inputs=inputs)
        looped, alone = bool(self.graph.regions_of(name)), not self.followers.get(name)
        waits = node.unit is Unit.BATCH and node.role is not Role.TRAIN
        return Step(
            item=self.names.index(name),
            barrier=cut.groups == 1 if looped else waits,
            inputs=inputs,
            reads=tuple(self._reads(name, places)),
            streams=not looped and alone and node.role is Role.COMPUTE,
            whole=looped,
        )

    def _reads(self, name: str, places: dict[str, int]) -> Iterator[Read]:
        trainers, deliveries = self.graph.trainers(), self.graph.deliveries()
        for node in map(self.graph.node, self.units.members(name)):
            if node.role is Role.TRAIN:
                continue
            often = cadence(self.graph, node)
            for use in node.models:
                if use.model not in trainers or use.port is Port.FROZEN:
                    continue
                trainer = places[self.units.unit(trainers[use.model].name)]
                sync = deliveries.get((use.model, use.served))
                if use.port is Port.TRAINED or sync is None:
                    yield Read(trainer, every=often)
                else:
                    every, most = sync.option("every"), 0 if use.served else self._allowed(sync)
                    yield Read(trainer, most, every - 1, every * often)

    def _allowed(self, sync: Node) -> int:
        return sync.option("max_staleness") - (sync.option("every") - 1)
