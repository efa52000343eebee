"""Order and cycles of a flow of named nodes: networkx behind precise types."""

from __future__ import annotations

from typing import Any, cast

import networkx as nx

from rlinf_graph.ir.graph import Graph, Node


def find_cycle(flow: nx.DiGraph[str]) -> list[str]:
    """The names along one cycle; empty when there is none."""
    try:
        edges = cast("Any", nx).find_cycle(flow)
    except nx.NetworkXNoCycle:
        return []
    return [str(edge[0]) for edge in edges]


def in_order(graph: Graph) -> list[Node]:
    """The nodes so that producers come first, otherwise as declared."""
    position = {node.name: i for i, node in enumerate(graph.nodes)}

    def rank(name: str) -> int:
        return position[name]

    order = cast("Any", nx).lexicographical_topological_sort(graph.flow, key=rank)
    return [graph.node(str(name)) for name in order]


def producers_of(graph: Graph, node: Node) -> list[Node]:
    """The nodes that work for another within an iteration; behind a region those of its body."""
    found: dict[str, Node] = {}
    for name in graph.flow.predecessors(node.name):
        made = graph.node(name)
        behind = producers_of(graph, made) if made.loop is not None else [made]
        found |= {other.name: other for other in behind}
    return list(found.values())


def downstream(flow: nx.DiGraph[str], name: str) -> set[str]:
    """Every node that a node's outputs reach, through any number of others."""
    return {str(other) for other in cast("Any", nx).descendants(flow, name)}
