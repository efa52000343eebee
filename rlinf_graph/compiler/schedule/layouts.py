"""The ways in which one node can use devices: a Pareto front of number, time and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rlinf_graph.compiler.cost import CostModel, NodeCost
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.compiler.schedule.engines import Able, engines_of
from rlinf_graph.compiler.schedule.memory import usable
from rlinf_graph.compiler.schedule.pins import FREE, Pin
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role, Unit
from rlinf_graph.ir.operations import Operations
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Generate
from rlinf_graph.nodes.capabilities import Layout, layout_refusal
from rlinf_graph.nodes.installed import Installed

GRAIN = 1e-3
"""Of a device's memory, by default."""

SLOTS = (256, 64, 16)
"""Sequences decoded together at most, besides as many as fit: a smaller key-value cache."""

LONG = 8192
"""Tokens of a longest sequence from which on it may be cut over context-parallel ranks."""


@dataclass(frozen=True)
class Option:
    """One layout of a node with what it costs."""

    settings: NodePlan
    cost: NodeCost

    @cached_property
    def resident(self) -> float:
        """Bytes a device that stay between uses."""
        return sum(size for _part, size in self.cost.resident)

    @cached_property
    def working(self) -> float:
        """Bytes a device more while it runs."""
        return sum(size for _part, size in self.cost.working)

    @property
    def used(self) -> int:
        """Devices it runs on."""
        return self.settings.parallel.devices


@dataclass
class Layouts:
    """Options of the nodes of one graph on one cluster, worked out once.

    Attributes:
        graph, cluster, costs: what is asked about.
        pins: given settings, by node.
        engines: plan with those that are installed only; None for all that are known.
        grain: part of a device's memory that is not worth any time.
    """

    graph: Graph
    cluster: Cluster
    costs: CostModel
    pins: Mapping[str, Pin]
    engines: Installed | None = None
    grain: float = GRAIN
    _known: dict[tuple[str, str, int], list[Option]] = field(
        default_factory=dict[tuple[str, str, int], list[Option]]
    )

    def options(self, name: str, group: NodeGroup, chunks: int) -> list[Option]:
        """The front on the devices of one node group, fastest first.

        What does not fit on a device even alone is left out, unless nothing else is there. Empty
        when no division of the batch is possible.
        """
        node = self.graph.node(name)
        chunks = chunks if node.role is Role.COMPUTE else 1
        key = (name, group.name, chunks)
        if key not in self._known:
            self._known[key] = self._front(node, group, chunks)
        return self._known[key]

    def following(self, name: str, group: NodeGroup, leader: Option) -> Option:
        """An evaluation with the engine of another node, on as many of its replicas as it needs."""
        node, given = self.graph.node(name), leader.settings
        most = 1
        if node.inputs:
            volume = self.graph.volume(node, node.inputs[0].source)
            most = volume.samples // volume.group
        ranks = min(given.parallel.dp, most)
        parallel = given.parallel.model_copy(
            update={"dp": ranks, "ep": math.gcd(given.parallel.ep, ranks)}
        )
        settings = given.model_copy(update={"parallel": parallel, "chunks": 1})
        first = self.cluster.first_of(group)
        return Option(
            settings, self.costs.node(node, range(first, first + parallel.devices), settings)
        )

    def none_because(self, name: str) -> tuple[str, str] | None:
        """Why a node has no layout at all: a code and a reason; None where it has one."""
        node, reasons = self.graph.node(name), list[tuple[str, str]]()
        if any(self.options(name, group, 1) for group in self.cluster.groups):
            return None
        pin = self.pins.get(name, FREE)
        given = {axis: getattr(pin, axis) or 1 for axis in ("tp", "pp", "cp", "dp", "ep")}
        for group in self.cluster.groups:
            able = self._engines(node, group)
            parallel = Parallel.model_validate(given)
            refused = self.costs.refusal(node, range(parallel.devices), NodePlan(parallel=parallel))
            lacking = [a for a, n in given.items() if n > 1 and not any(a in e.axes for e in able)]
            if not able:
                reasons.append(("RG0503", f"no engine can do it on {group.device.name}"))
            elif refused:
                reasons.append(("RG0406", refused))
            elif lacking:
                names = ", ".join(engine.name for engine in able)
                reasons.append(("RG0406", f"{names} cannot spread it by {', '.join(lacking)}"))
            else:
                reasons.append(("RG0403", "no division of its batch"))
        return reasons[0]

    def _front(self, node: Node, group: NodeGroup, chunks: int) -> list[Option]:
        first, memory = self.cluster.first_of(group), usable(group)
        made: list[Option] = []
        for room in (memory, float("inf")):
            for settings in self._settings(node, group, chunks):
                place = range(first, first + settings.parallel.devices)
                cost = self.costs.within(node, place, settings, room)
                made += [Option(settings, cost)] if cost else []
            if made:
                break
        return _pareto(made, self.grain * memory, memory)

    def _settings(self, node: Node, group: NodeGroup, chunks: int) -> list[NodePlan]:
        """On given devices, those that use the most of them."""
        made, pin = list(self._all_settings(node, group, chunks)), self.pins.get(node.name, FREE)
        if pin.devices is None:
            return made
        inside = [s for s in made if s.parallel.devices <= len(pin.devices)]
        most = max((s.parallel.devices for s in inside), default=0)
        return [s for s in inside if s.parallel.devices == most]

    def _all_settings(self, node: Node, group: NodeGroup, chunks: int) -> Iterator[NodePlan]:
        pin = self.pins.get(node.name, FREE)
        for able in self._engines(node, group):
            if node.role is Role.TRAIN:
                made = self._training(node, group, able)
            else:
                made = self._streaming(node, group, able, chunks)
            yield from made if pin == FREE else filter(pin.allows, made)

    def _engines(self, node: Node, group: NodeGroup) -> list[Able]:
        pinned = self.pins.get(node.name, FREE).engine
        return engines_of(self.graph, node, group.device.kind, self.engines, pinned)

    def _training(self, node: Node, group: NodeGroup, able: Able) -> Iterator[NodePlan]:
        minibatch = node.option("minibatch") or self.samples(node)
        on_cpu = group.device.kind == "cpu"
        for parallel in self._parallels(node, group, able, _divisors(minibatch)):
            for shard in self._shards(node, able, parallel.dp if not on_cpu else 1):
                spread = parallel.model_copy(update={"shard": shard})
                for micro_batch in self._micro_batches(node, minibatch // parallel.dp):
                    for recompute in (False,) if on_cpu else (False, True):
                        yield NodePlan(
                            parallel=spread,
                            engine=able.name,
                            micro_batch=micro_batch,
                            recompute=recompute,
                        )

    def _shards(self, node: Node, able: Able, ranks: int) -> tuple[str, ...]:
        """What data-parallel ranks share.

        Where they can share the optimizer's states, to hold all of them is always worse, and is
        planned only if it is pinned.
        """
        if ranks == 1:
            return ("none",)
        if "optimizer" in able.axes and self.pins.get(node.name, FREE).shard != "none":
            return ("optimizer",)
        return ("none", "fsdp") if "fsdp" in able.axes else ("none",)

    def _streaming(
        self, node: Node, group: NodeGroup, able: Able, chunks: int
    ) -> Iterator[NodePlan]:
        if not node.inputs:  # an evaluation that makes its own samples
            ranks = [1]
        else:
            volume = self.graph.volume(node, node.inputs[0].source)
            units = volume.samples // volume.group
            if node.role is Role.EVALUATE:  # shares may differ by one sample
                ranks = sorted({*_powers(units), *_up_to(units)})
            else:
                ranks = _divisors(units // chunks) if units % chunks == 0 else []
        work = node.work
        for parallel in self._parallels(node, group, able, ranks):
            limits: list[int | None] = [None]
            if isinstance(work, Generate) and able.name != "torch":
                together = math.ceil(work.samples / (chunks * parallel.dp))
                given = self.pins.get(node.name, FREE).micro_batch
                limits += [slots for slots in (*SLOTS, given) if slots and slots < together]
            for slots in limits:
                yield NodePlan(
                    parallel=parallel, engine=able.name, chunks=chunks, micro_batch=slots
                )

    def _parallels(
        self, node: Node, group: NodeGroup, able: Able, ranks: Sequence[int]
    ) -> Iterator[Parallel]:
        """Degrees of the axes of an engine, tensor ranks within a machine."""
        if isinstance(node.work, Operations):
            alone = node.unit is Unit.BATCH  # one device sees the whole batch
            for dp in (1,) if alone else ranks:
                if dp <= group.size:
                    yield Parallel(dp=dp)
            return
        shape, pin = self.costs.shapes[node.model or ""], self.pins.get(node.name, FREE)
        long = node.role is not Role.EVALUATE and _longest(node) >= LONG
        machine = group.domain
        for tp in _degrees("tp", able, machine, pin.tp):
            for pp in _degrees("pp", able, shape.layers, pin.pp):
                for cp in _degrees("cp", able, machine // tp if long else 1, pin.cp):
                    one = Parallel(tp=tp, pp=pp, cp=cp)
                    if self.costs.refusal(node, range(one.devices), NodePlan(parallel=one)):
                        continue
                    for dp in ranks:
                        if tp * pp * cp * dp > group.size or ("dp" not in able.axes and dp > 1):
                            continue
                        for ep in _degrees("ep", able, dp if shape.experts else 1, pin.ep):
                            made = Parallel(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep)
                            if not self._refusal(able, shape, made):
                                yield made

    @staticmethod
    def _refusal(able: Able, shape: ModelShape, parallel: Parallel) -> str | None:
        settings = NodePlan(parallel=parallel)
        tied, mixture = bool(shape.tied), shape.experts > 0
        return layout_refusal(able.support, Layout(settings, tied=tied, mixture=mixture))

    def _micro_batches(self, node: Node, most: int) -> list[int]:
        given = self.pins.get(node.name, FREE).micro_batch
        if given:
            return [given] if most % given == 0 else []
        return _powers(most)

    def samples(self, node: Node) -> int:
        """Samples that a node takes in an iteration."""
        return self.graph.volume(node, node.inputs[0].source).samples


def _longest(node: Node) -> float:
    lengths = getattr(node.work, "lengths", None)
    return lengths.longest if lengths else 0.0


def _degrees(axis: str, able: Able, most: int, given: int | None) -> list[int]:
    """Powers of two, or what is given where the engine can do it."""
    if given:
        return [given] if axis in able.axes or given == 1 else []
    return [2**i for i in range(max(1, most).bit_length())] if axis in able.axes else [1]


def _pareto(options: list[Option], grain: float, memory: float) -> list[Option]:
    """Those for which something speaks; less than `grain` bytes do not."""
    fitting = [o for o in options if o.resident + o.working <= memory]
    if not fitting:
        fitting = sorted(options, key=lambda o: o.resident + o.working)[:1]
    ordered = sorted(
        fitting, key=lambda o: (o.cost.seconds, o.used, o.resident + o.working, o.resident)
    )
    kept: list[Option] = []
    rows = np.zeros((len(ordered), 3))
    for option in ordered:
        mine = np.asarray([option.used, option.resident + grain, option.working + grain])
        if not (rows[: len(kept)] <= mine).all(axis=1).any():
            rows[len(kept)] = option.used, option.resident, option.working
            kept.append(option)
    return kept


def _powers(most: int) -> list[int]:
    """The powers of two that divide `most`, and `most` itself."""
    return sorted({2**i for i in range(most.bit_length()) if most % 2**i == 0} | {most})


def _up_to(most: int) -> list[int]:
    """Powers of two up to `most`."""
    return [2**i for i in range(most.bit_length())]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
