"""Loop regions in the space of plans: each is one part of a placement, whatever stands in it."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Leaf, Placement, Turn


class Units:
    """Nodes that are placed together, under the name of the first of them.

    Attributes:
        names: of the units, in the order of the flow.
        flow: the graph with each region as one node.
    """

    def __init__(self, graph: Graph, placed: Sequence[str]) -> None:
        """`placed` are the device nodes to be placed, in the order of the flow."""
        self._members: dict[str, list[str]] = {}
        first: dict[str, str] = {}
        for name in placed:
            around = graph.regions_of(name)
            unit = first.setdefault(around[0], name) if around else name
            self._members.setdefault(unit, []).append(name)
        self.names = list(self._members)
        self.flow: nx.DiGraph[str] = nx.DiGraph()
        unit_of = {n.name: _unit(graph, n.name, first) for n in graph.nodes}
        self.flow.add_nodes_from(unit_of.values())
        ends = [(unit_of[a], unit_of[b]) for a, b in graph.flow.edges]
        self.flow.add_edges_from((a, b) for a, b in ends if a != b)

    def unit(self, name: str) -> str:
        """The unit that a placed node belongs to."""
        return next(unit for unit, members in self._members.items() if name in members)

    def members(self, name: str) -> list[str]:
        """The placed nodes of a unit."""
        return self._members[name]

    def spread(self, placement: Placement) -> Placement:
        """Every unit as what stands in it: nodes of a loop that share devices take turns."""
        if isinstance(placement, Leaf):
            members = self._members.get(placement.node, [placement.node])
            if len(members) == 1:
                return placement
            leaves = tuple(Leaf(node=name, devices=placement.devices) for name in members)
            return Turn(per="micro_batch", parts=leaves)
        parts = tuple(self.spread(part) for part in placement.parts)
        return placement.model_copy(update={"parts": parts})


def _unit(graph: Graph, name: str, first: dict[str, str]) -> str:
    around = (*graph.regions_of(name), name)
    return first.get(around[0], around[0] if len(around) > 1 else name)
