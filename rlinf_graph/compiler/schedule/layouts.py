"""The ways in which one node can use a number of devices: a Pareto front of time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from rlinf_graph.compiler.cost import CostModel, NodeCost
from rlinf_graph.compiler.schedule.pins import Pin
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.plan import NodePlan, Parallel

GRAIN = 1e-3
"""Of a device's memory, by default."""


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

    def covers(self, other: Option, grain: float) -> bool:
        """Whether nothing speaks for the other; less than `grain` bytes do not."""
        return (
            self.cost.seconds <= other.cost.seconds
            and self.resident <= other.resident + grain
            and self.working <= other.working + grain
        )


@dataclass
class Layouts:
    """Options of the nodes of one graph on one cluster, worked out once; `grain` as in `Search`."""

    graph: Graph
    cluster: Cluster
    costs: CostModel
    pins: dict[str, Pin]
    grain: float = GRAIN
    _known: dict[tuple[str, int, int], list[Option]] = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]  # inferred from the annotation

    def options(self, name: str, devices: tuple[int, ...], chunks: int) -> list[Option]:
        """The Pareto front on these devices or the first of them; fastest first.

        Empty when no division of the batch fits.
        """
        key = (name, len(devices), chunks)
        if key not in self._known:
            self._known[key] = self._front(self.graph.node(name), devices, chunks)
        return self._known[key]

    def _front(self, node: Node, devices: tuple[int, ...], chunks: int) -> list[Option]:
        """More devices are not always faster: small work is all latency and communication."""
        made = [
            Option(settings, self.costs.node(node, devices[:used], settings))
            for used in range(len(devices), 0, -1)
            for settings in self._settings(node, used, chunks)
        ]
        memory = min(self.cluster.group_of(device).device.memory for device in devices)
        return _pareto(made, self.grain * memory)

    def _settings(self, node: Node, devices: int, chunks: int) -> Iterator[NodePlan]:
        tp = self.pins.get(node.name, Pin()).tp or 1
        if devices % tp:
            return
        ranks = devices // tp
        if node.role is Role.TRAIN:
            yield from self._training(node, ranks, tp)
        else:
            yield from self._streaming(node, ranks, tp, chunks)

    def _training(self, node: Node, ranks: int, tp: int) -> Iterator[NodePlan]:
        minibatch = node.option("minibatch") or self.samples(node)
        if minibatch % ranks:
            return
        shares = ("none", "fsdp") if ranks > 1 and not self._on_cpu else ("none",)
        for shard in shares:
            for micro_batch in _powers(minibatch // ranks):
                for recompute in (False,) if self._on_cpu else (False, True):
                    yield NodePlan(
                        parallel=Parallel(dp=ranks, tp=tp, shard=shard),
                        micro_batch=micro_batch,
                        recompute=recompute,
                    )

    def _streaming(self, node: Node, ranks: int, tp: int, chunks: int) -> Iterator[NodePlan]:
        if not node.inputs:  # an evaluation that makes its own samples
            if ranks == 1:
                yield NodePlan(parallel=Parallel(tp=tp))
            return
        edge = node.inputs[0]
        volume = self.graph.volume(node, edge.source)
        units = volume.samples // volume.group
        parallel = Parallel(dp=ranks, tp=tp)
        if node.role is Role.EVALUATE:  # shares may differ by one sample
            if units >= ranks:
                yield NodePlan(parallel=parallel)
        elif units % (ranks * chunks) == 0:
            yield NodePlan(parallel=parallel, chunks=chunks)

    def samples(self, node: Node) -> int:
        """Samples that a node takes in an iteration."""
        return self.graph.volume(node, node.inputs[0].source).samples

    @property
    def _on_cpu(self) -> bool:
        return all(group.device.kind == "cpu" for group in self.cluster.groups)


def _pareto(options: list[Option], grain: float) -> list[Option]:
    ordered = sorted(options, key=lambda o: (o.cost.seconds, o.resident + o.working, o.used))
    kept: list[Option] = []
    for option in ordered:
        if not any(better.covers(option, grain) for better in kept):
            kept.append(option)
    return kept


def _powers(most: int) -> list[int]:
    """The powers of two that divide `most`, and `most` itself."""
    return sorted({2**i for i in range(most.bit_length()) if most % 2**i == 0} | {most})
