"""What gets devices as one, and the ways in which it can use them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import networkx as nx
import numpy as np

from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.constants import STEP_SECONDS
from rlinf_graph.compiler.lower import cadence, is_host, works
from rlinf_graph.compiler.schedule.candidate import host_processes
from rlinf_graph.compiler.schedule.layouts import Layouts, Option
from rlinf_graph.compiler.schedule.regions import Units
from rlinf_graph.compiler.simulate import MOST_MICRO_BATCHES, MOST_STEPS
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role


@dataclass(frozen=True)
class Way:
    """One way to run an item: the columns of `Choices`, and what they stand for.

    Attributes:
        group: number of the node group.
        devices: of that group.
        options: of each of its nodes, by name.
        seconds, tail, resident, working, switch, after: as in `Choices`.
    """

    group: int
    devices: int
    options: tuple[tuple[str, Option], ...]
    seconds: float
    tail: float
    resident: float
    working: float
    switch: float
    after: float


@dataclass
class Ways:
    """Ways of the items of a graph.

    Attributes:
        graph, cluster, costs: what is asked about.
        layouts: of single nodes.
        units: what gets devices as one.
        followers: evaluations that use a unit's engine, by unit.
    """

    graph: Graph
    cluster: Cluster
    costs: CostModel
    layouts: Layouts
    units: Units
    followers: dict[str, list[str]]
    _hosts: dict[str, float] = field(default_factory=dict[str, float])

    def of(self, name: str, group: NodeGroup, chunks: int, groups: int) -> list[Way]:
        """On a node group; `groups` are those of a loop's samples."""
        made = list(self._made(name, group, chunks, groups))
        if len(self.units.members(name)) == 1 and not self.followers.get(name):
            return made
        return _front(made)

    def _made(self, name: str, group: NodeGroup, chunks: int, groups: int) -> Iterator[Way]:
        members = self.units.members(name)
        looped = bool(self.graph.regions_of(name))
        cut = groups if looped else chunks
        fronts = [self.layouts.options(member, group, cut) for member in members]
        counts = sorted({option.used for front in fronts for option in front})
        for count in counts if len(members) > 1 else counts[:1]:
            usable = [_within(front, count) for front in fronts] if len(members) > 1 else fronts
            for chosen in product(*usable):
                used = max(option.used for option in chosen)
                if len(members) == 1 or used == count:
                    made = dict(zip(members, chosen, strict=True))
                    way = self._way(name, group, made, chunks, groups)
                    yield from [way] if self._follows_pins(way) else []

    def _way(
        self, name: str, group: NodeGroup, chosen: dict[str, Option], chunks: int, groups: int
    ) -> Way:
        members, node = list(chosen), self.graph.node(name)
        seconds, tail, early = self._times(name, group, chosen, chunks, groups)
        working = max(option.working for option in chosen.values())
        resident = sum(option.resident for option in chosen.values())
        after = -early
        for follower in self.followers.get(name, []):
            leader = chosen.get(self._leader(follower), chosen[members[0]])
            option = self.layouts.following(follower, group, leader)
            chosen[follower] = option
            after += option.cost.seconds / cadence(self.graph, self.graph.node(follower))
            working = max(working, option.working)
        costs = [chosen[member].cost for member in members]
        return Way(
            group=self.cluster.groups.index(group),
            devices=max(chosen[member].used for member in members),
            options=tuple(chosen.items()),
            seconds=seconds,
            tail=tail,
            resident=resident,
            working=working,
            switch=sum(c.load_s + c.offload_s for c in costs) / cadence(self.graph, node),
            after=after,
        )

    def _follows_pins(self, way: Way) -> bool:
        """Evaluations take over a layout, and must be allowed to."""
        pins = self.layouts.pins
        return all(pins[n].allows(o.settings) for n, o in way.options if n in pins)

    def _leader(self, follower: str) -> str:
        model = self.graph.node(follower).model
        return next((n.name for n in self.graph.nodes if n.model == model and works(n)
                     and n.role is Role.COMPUTE), "")  # fmt: skip

    def _times(
        self, name: str, group: NodeGroup, chosen: dict[str, Option], chunks: int, groups: int
    ) -> tuple[float, float, float]:
        """Seconds of an item; those after its last sample has come; by how much devices end early.

        The first two are at least what it takes from when it has its devices.
        """
        node, option = self.graph.node(name), chosen[name]
        if around := self.graph.regions_of(name):
            seconds, early = self._loop_seconds(around[0], chosen, groups)
            return seconds, seconds / groups, early
        every = cadence(self.graph, node)
        seconds = option.cost.seconds / every
        if node.role is not Role.TRAIN:
            return seconds, seconds / option.settings.chunks, 0.0
        return seconds, self._training_tail(node, group, option, chunks), 0.0

    def _training_tail(self, node: Node, group: NodeGroup, option: Option, chunks: int) -> float:
        """All micro-batches with a sample of the last chunk, their updates, and later epochs."""
        settings, epochs = option.settings, node.option("epochs")
        samples = self.layouts.samples(node)
        minibatch = node.option("minibatch") or samples
        steps = max(1, samples // minibatch)
        micro = minibatch // (settings.parallel.dp * (settings.micro_batch or minibatch)) or 1
        micro = max(n for n in range(1, MOST_MICRO_BATCHES + 1) if micro % n == 0)
        first = self.cluster.first_of(group)
        place = range(first, first + settings.parallel.devices)
        update = self.costs.optimizer_step_seconds(node, place, settings)
        epoch = option.cost.seconds / epochs
        one = max(0.0, epoch / steps - update) / micro
        last = steps * micro - steps * micro * (chunks - 1) // chunks
        ends = last * one + math.ceil(last / micro) * update
        return min(epoch, ends) + epoch * (epochs - 1)

    def _loop_seconds(
        self, region: str, chosen: dict[str, Option], groups: int
    ) -> tuple[float, float]:
        """Of all steps of a loop, from when its first device node begins; how early devices end.

        A group's next step begins when what is carried is there. Any node is idle at least while
        the first group comes to it in the first step, and while the last goes on from it.
        """
        seconds = {
            node.name: chosen[node.name].cost.seconds
            if node.name in chosen
            else self.host_seconds(node, groups)
            for node in self.graph.nodes
            if works(node) and region in self.graph.regions_of(node.name)
        }
        flow, order = self.graph.flow, [n for n in self._order if n in seconds]
        until, after = dict.fromkeys(seconds, 0.0), dict.fromkeys(seconds, 0.0)
        for name in order:
            before = (until[p] for p in flow.predecessors(name) if p in seconds)
            until[name] = seconds[name] + max(before, default=0.0)
        for name in reversed(order):
            later = (seconds[s] + after[s] for s in flow.successors(name) if s in seconds)
            after[name] = max(later, default=0.0)
        loop = self.graph.node(region).loop
        steps = min(loop.length if loop else 1, MOST_STEPS)
        cycle = until.get(loop.carried.node, 0.0) if loop else 0.0
        chain = cycle + (max(until.values()) - cycle) / steps
        alone = (
            seconds[name] + (until[name] - seconds[name] + after[name]) / (groups * steps)
            for name in seconds
        )
        placed = [name for name in chosen if name in seconds]
        before = min(until[name] - seconds[name] for name in placed) / (groups * steps)
        early = min(after[name] for name in placed) / (groups * steps)
        busy = sum(seconds[name] for name in placed)
        return max(busy + early, chain / groups - before, max(alone) - before), early

    @cached_property
    def _order(self) -> list[str]:
        return list(nx.topological_sort(self.graph.flow))

    def host_seconds(self, node: Node, groups: int = 1) -> float:
        """Of a node on the host in an iteration; of a loop without devices, of its busiest node."""
        if node.role is Role.REGION:
            inner = [n for n in self.graph.nodes if node.name in self.graph.regions_of(n.name)]
            return max((self.host_seconds(n, groups) for n in inner if works(n)), default=0.0)
        if not works(node) or not is_host(node):
            return 0.0
        if node.name not in self._hosts:
            processes, group = host_processes(self.cluster), self.cluster.groups[0]
            made = self.costs.host(node, processes, group).seconds
            self._hosts[node.name] = made / cadence(self.graph, node)
        more = STEP_SECONDS * node.steps * (groups - 1) if node.region else 0.0
        return self._hosts[node.name] + more


def _within(front: list[Option], devices: int) -> list[Option]:
    """Those on so many devices or fewer, without those that others are better than."""
    found = [option for option in front if option.used <= devices]
    most = max((option.used for option in found), default=0)
    return [option for option in found if option.used == most]


def _front(ways: list[Way]) -> list[Way]:
    """Those for which something speaks."""
    ordered = sorted(ways, key=lambda w: (w.seconds + w.after, w.devices, w.resident + w.working))
    kept: list[Way] = []
    rows = np.zeros((len(ordered), 6))
    for way in ordered:
        mine = np.asarray(
            [way.devices, way.resident, way.working, way.seconds, way.after, way.switch]
        )
        if not (rows[: len(kept)] <= mine).all(axis=1).any():
            rows[len(kept)] = mine
            kept.append(way)
    return kept
