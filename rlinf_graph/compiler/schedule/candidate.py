"""One point of the search space, and how it becomes a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlinf_graph.compiler.check_plan import device_nodes
from rlinf_graph.compiler.lower import is_host, works
from rlinf_graph.compiler.schedule.layouts import Option
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.graph_file import digest
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.plan import (
    Leaf,
    PipelineRef,
    Placement,
    Plan,
    Split,
    SyncPlan,
    Turn,
    leaves_of,
    mode_of,
)
from rlinf_graph.ir.span import shown_path
from rlinf_graph.ir.wiring import wiring


@dataclass(frozen=True)
class Candidate:
    """A placement with a layout for each node.

    Attributes:
        placement: companions included.
        options: the layout of each device node.
        chunks: of every node that streams.
        staleness: of every sync, within its bound.
        offloaded: nodes whose state leaves the device when others have their turn.
        groups: of each loop region: the parts of its samples that are in different steps at once.
        bound: seconds an iteration that no schedule of it can beat.
    """

    placement: Placement
    options: tuple[tuple[str, Option], ...]
    chunks: int
    staleness: int
    offloaded: frozenset[str] = frozenset()
    groups: int = 1
    bound: float = field(default=0.0, compare=False)

    @property
    def family(self) -> tuple[str, int]:
        """Mode and staleness: what people call a kind of plan."""
        return mode_of(self.placement), self.staleness

    def label(self) -> str:
        """Enough to tell it from others, and to break ties the same way every time."""
        groups = f" groups {self.groups}" if self.groups > 1 else ""
        return f"{_show(self.placement)} chunks {self.chunks} staleness {self.staleness}{groups}"


def to_plan(candidate: Candidate, graph: Graph, cluster: Cluster) -> Plan:
    """The plan of a candidate, without an estimate."""
    options = dict(candidate.options)
    return Plan(
        pipeline=PipelineRef(
            file=shown_path(graph.file), name=graph.name, parameters=dict(graph.parameters)
        ),
        graph=digest(graph),
        cluster=cluster.name,
        mode=mode_of(candidate.placement),
        placement=candidate.placement,
        nodes={
            name: option.settings.model_copy(update={"resident": name not in candidate.offloaded})
            for name, option in options.items()
        },
        host={n.name: host_processes(cluster) for n in graph.nodes if works(n) and is_host(n)},
        regions={
            node.name: divided(graph, node, candidate.groups)
            for node in graph.with_role(Role.REGION)
        },
        transports={wire.name: "memory" for wire in wiring(graph).wires},
        syncs={
            node.name: SyncPlan(
                method=_method(graph, candidate.placement, model, served),
                staleness=(lag := _lag(candidate, graph, model, served)),
                interrupt=lag > 0 and node.option("interrupt"),
            )
            for (model, served), node in graph.deliveries().items()
        },
    )


def _lag(candidate: Candidate, graph: Graph, model: str, served: str) -> int:
    return 0 if served else min(candidate.staleness, _allowed(graph, model))


def divided(graph: Graph, region: Node, groups: int) -> int:
    """The groups of a region's samples: as many as asked for where they can be cut so."""
    volume = graph.volume(region, region.inputs[0].source)
    whole = any(n.unit is Unit.BATCH for n in graph.body(region.name) if works(n))
    return groups if (volume.samples // volume.group) % groups == 0 and not whole else 1


def host_processes(cluster: Cluster) -> int:
    """Processes of a host node: the cores of one machine, at most 64."""
    return max(1, min(64, cluster.groups[0].cpus))


def companions(graph: Graph) -> dict[str, str]:
    """Evaluations that use the engine of a rollout: they stand beside it and are not searched."""
    rollouts = {
        use.model: node.name
        for node in device_nodes(graph)
        if node.role is Role.COMPUTE
        for use in node.models
        if use.port is Port.SERVED and not use.served
    }
    return {
        node.name: rollouts[node.model]
        for node in graph.with_role(Role.EVALUATE)
        if node.model in rollouts
    }


def with_companions(placement: Placement, followers: dict[str, list[str]]) -> Placement:
    """Give every follower its turn right after the node it accompanies."""
    if isinstance(placement, Leaf):
        parts = _followed(placement, followers)
        return placement if len(parts) == 1 else Turn(parts=parts)
    if isinstance(placement, Turn) and placement.per == "iteration":
        parts = tuple(
            inner
            for part in placement.parts
            for inner in (
                _followed(part, followers)
                if isinstance(part, Leaf)
                else (with_companions(part, followers),)
            )
        )
        return Turn(per="iteration", parts=parts)
    made = tuple(with_companions(part, followers) for part in placement.parts)
    return placement.model_copy(update={"parts": made})


def _followed(leaf: Leaf, followers: dict[str, list[str]]) -> tuple[Placement, ...]:
    more = (Leaf(node=name, devices=leaf.devices) for name in followers.get(leaf.node, []))
    return (leaf, *more)


def _allowed(graph: Graph, model: str) -> int:
    sync = graph.syncs()[model]
    return sync.option("max_staleness") - (sync.option("every") - 1)


def _method(
    graph: Graph, placement: Placement, model: str, served: str
) -> Literal["copy", "broadcast"]:
    """`copy` where every reader is on the trainer's devices."""
    devices = {leaf.node: set(leaf.devices) for leaf in leaves_of(placement)}
    trained_on = devices.get(graph.trainers()[model].name, set[int]())
    names = (node.name for node in graph.readers(model, served))
    readers = [devices[name] for name in names if name in devices]
    return "copy" if all(reader <= trained_on for reader in readers) else "broadcast"


def _show(placement: Placement) -> str:
    if isinstance(placement, Leaf):
        return f"{placement.node}@{placement.devices[0]}+{len(placement.devices)}"
    word = "split" if isinstance(placement, Split) else f"turn {placement.per}"
    return f"{word}({', '.join(_show(part) for part in placement.parts)})"
