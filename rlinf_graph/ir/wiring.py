"""Which node's output comes to which parameter, when: the edges of a graph with loops resolved.

A region is no node that works. What enters it comes to the nodes of its body straight from who made
it, in a loop's first step; later steps get what was carried. What leaves it is sent by the node of
the body that made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.graph import Graph, Input, Node
from rlinf_graph.ir.node_type import Role

Leaving = Literal["last", "joined"]


@dataclass(frozen=True)
class Wire:
    """A batch on its way from the node that made it to a parameter of another.

    Attributes:
        source: an output of a node that works, or a field of it.
        target, param: where it goes.
        type: of the batch.
        depth: loops around both ends; the wire carries one batch in each of their steps.
        lag: 1 for what was made in the step before (at depth 0: the iteration before).
        initial: whether only the first iteration sends it: a state begins with it.
        leaving: how it leaves the loops that only its source is in, innermost first: the value
            after the last step, or those of all steps joined.
    """

    source: Source
    target: str
    param: str
    type: str
    depth: int = 0
    lag: int = 0
    initial: bool = False
    leaving: tuple[Leaving, ...] = ()

    @property
    def name(self) -> str:
        """Unique in the graph."""
        loop = f", {self.depth} loops deep" if self.depth > 1 else ""
        before = f" (of the step before{loop})" if self.lag and self.depth else ""
        return f"{self.source} -> {self.target}.{self.param}{before}"


@dataclass(frozen=True)
class Pick:
    """One wire in the first step of a loop (at depth 0: iteration), another in later ones."""

    depth: int
    first: Way
    later: Way


Way = Wire | Pick


@dataclass(frozen=True)
class Wiring:
    """All ways of a graph, by consumer."""

    ways: tuple[Way, ...]

    @property
    def wires(self) -> list[Wire]:
        """Every wire once."""
        return list(dict.fromkeys(wire for way in self.ways for wire in wires_of(way)))

    def into(self, node: str) -> list[Way]:
        """What comes to a node."""
        return [way for way in self.ways if next(wires_of(way)).target == node]

    def out_of(self, node: str) -> list[Wire]:
        """What a node sends."""
        return [wire for wire in self.wires if wire.source.node == node]


def wires_of(way: Way) -> Iterator[Wire]:
    """The wires of a way, that of the first step first."""
    if isinstance(way, Wire):
        yield way
        return
    yield from wires_of(way.first)
    yield from wires_of(way.later)


def wiring(graph: Graph) -> Wiring:
    """Resolve a verified graph; deliveries of weights have no wires."""
    ways: list[Way] = []
    for node in graph.nodes:
        if node.role in (Role.REGION, Role.SYNC):
            continue
        for param in dict.fromkeys(i.param for i in node.inputs):
            given = [i for i in node.inputs if i.param == param and i.type != "Weights"]
            if given:
                ways.append(_of_inputs(graph, node, given))
    return Wiring(tuple(ways))


def _of_inputs(graph: Graph, node: Node, given: list[Input]) -> Way:
    """One edge, or those of a state: where it begins, and what is carried into it."""
    around = graph.regions_of(node.name)
    found = {i.lag: _way(graph, node, i, i.source, around, i.lag) for i in given}
    return Pick(0, _initial(found[0]), found[1]) if 1 in found else found[0]


def _initial(way: Way) -> Way:
    if isinstance(way, Pick):
        return Pick(way.depth, _initial(way.first), _initial(way.later))
    return replace(way, initial=True)


def _way(
    graph: Graph, node: Node, given: Input, source: Source, around: tuple[str, ...], lag: int
) -> Way:
    """The way from `source`, as seen by a node of the innermost region of `around`."""
    if source.node in around:
        depth = around.index(source.node) + 1
        region = graph.node(source.node)
        start, loop = region.input("start"), region.loop
        if start is None or loop is None:
            raise ValueError(f"`{region.name}` is no verified region")
        return Pick(
            depth,
            _way(graph, node, given, _deeper(start.source, source), around[: depth - 1], 0),
            _way(graph, node, given, _deeper(loop.carried, source), around[:depth], 1),
        )
    made, leaving = made_by(graph, source)
    inside = graph.regions_of(made.node)
    depth = len(inside) - len(leaving)
    return Wire(made, node.name, given.param, given.type, depth, lag, leaving=leaving)


def made_by(graph: Graph, source: Source) -> tuple[Source, tuple[Leaving, ...]]:
    """The node that works behind an output of a region, and how the value leaves the loops."""
    leaving: list[Leaving] = []
    while (loop := graph.node(source.node).loop) is not None:
        inner = loop.emitted[source.output - 1] if source.output else loop.carried
        leaving.append("joined" if source.output else "last")
        source = _deeper(inner, source)
    return source, tuple(reversed(leaving))


def _deeper(base: Source, taken: Source) -> Source:
    """`base`, and of it the field that is taken."""
    return Source(base.node, base.output, (*base.field, *taken.field))
