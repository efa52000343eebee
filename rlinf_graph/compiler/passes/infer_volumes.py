"""How much every edge carries, and what every node asks of the hardware."""

from __future__ import annotations

from dataclasses import replace

from rlinf_graph.dsl.node import Call, definitions
from rlinf_graph.ir.flow import in_order
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.work import Volume


def infer_volumes(graph: Graph) -> Graph:
    """Set `volume` and `work` of every node, along the flow."""
    known: dict[str, Node] = {}
    for node in in_order(graph):
        definition = definitions[node.type]
        volumes = {i.param: known[i.source.node].volume[i.source.output] for i in node.inputs
                   if i.type != "Weights"}  # fmt: skip
        call = Call(volumes, dict(node.options))
        made = definition.volume(call) if definition.volume else _like_first(node, volumes)
        work = definition.work(call) if definition.work and (volumes or not node.inputs) else None
        known[node.name] = replace(node, volume=made, work=work)
    return graph.with_nodes(tuple(known[node.name] for node in graph.nodes))


def _like_first(node: Node, volumes: dict[str, Volume]) -> tuple[Volume, ...]:
    """A node that says nothing else hands on as much as it takes."""
    first = next(iter(volumes.values()), None)
    return (first,) * len(node.outputs) if first is not None else ()
