"""The edges of a drawing that close a cycle: weights, state, and what a loop carries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import networkx as nx

from rlinf_graph.compiler.explain.drawing.places import register
from rlinf_graph.compiler.explain.drawing.words import delivery
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Port, Role

ArcKind = Literal["weights", "trained", "state", "step"]


@dataclass(frozen=True)
class Arc:
    """From an item to those that take its value in the next iteration, or step of a loop.

    Attributes:
        kind: `weights` of a sync, a model as `trained` before, `state`, or of a loop's `step`.
        source, targets: items.
        subject: the model or its named port, or the batch type.
        remarks: on when it arrives.
    """

    kind: ArcKind
    source: str
    targets: tuple[str, ...]
    subject: str
    remarks: tuple[str, ...]


def arcs_of(graph: Graph) -> Iterator[Arc]:
    """Deliveries of weights first, then what is carried."""
    for sync in graph.with_role(Role.SYNC):
        model, served = sync.models[0].model, sync.models[0].served
        targets = tuple(n.name for n in graph.readers(model, served) if n.role is not Role.TRAIN)
        remarks = delivery(graph, sync) if targets else ["read by nobody"]
        yield Arc("weights", sync.name, targets, served or model, tuple(remarks))
    for model, trainer in graph.trainers().items():
        later = cast("set[str]", cast("Any", nx).descendants(graph.flow, trainer.name))
        readers = _readers_of_trained(graph, model)
        targets = tuple(n.name for n in readers if n.name not in later)
        if targets:
            yield Arc("trained", trainer.name, targets, model, ("as trained",))
    yield from _carried(graph)


def _readers_of_trained(graph: Graph, model: str) -> list[Node]:
    """The nodes that read a model's trained port, those that write it excepted."""
    return [
        node
        for node in graph.nodes
        if node.role not in (Role.SYNC, Role.TRAIN)
        and any(use.model == model and use.port is Port.TRAINED for use in node.models)
    ]


def _carried(graph: Graph) -> Iterator[Arc]:
    found: dict[tuple[str, str], list[str]] = {}
    for edge in graph.edges:
        if edge.lag:
            found.setdefault((edge.source.node, edge.type), []).append(edge.target)
    for (source, kind), targets in found.items():
        yield Arc("state", source, tuple(dict.fromkeys(targets)), kind, ("next iteration",))
    for node in graph.nodes:
        if node.loop is not None and node.loop.carried.node != node.name:
            kind = node.outputs[0] if node.outputs else ""
            target = (register(node.name),)
            yield Arc("step", node.loop.carried.node, target, kind, ("next step",))
