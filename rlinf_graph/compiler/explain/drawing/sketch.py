"""What a drawing of a graph shows, before anything has a place.

A *scope* is the inside of a loop, or the whole graph under the empty name. Its items are nodes,
loops, and in a loop a *register*: the value carried from step to step. An edge between scopes is a
*wire* of several *links*, one in each scope on its way.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlinf_graph.compiler.explain.drawing.feedback import Arc, arcs_of
from rlinf_graph.compiler.explain.drawing.places import Places, register
from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.graph import Edge, Graph
from rlinf_graph.ir.node_type import Role


@dataclass(frozen=True)
class Stop:
    """An end of a link: an item, or the frame of the scope itself where `item` is empty.

    `port` tells passages apart: through the scope's frame, or that of an item which is a loop.
    """

    item: str
    port: str = ""


@dataclass(frozen=True)
class Link:
    """The part of a wire in one scope.

    Links of the same tail and `cargo`, the text of the source, carry the same batch; `label` is its
    type, empty where another link of the wire has said so.
    """

    tail: Stop
    head: Stop
    cargo: str
    label: str


@dataclass(frozen=True)
class Wire:
    """An edge, or how a value of a loop's body comes to the loop's frame.

    Attributes:
        source, target: items at its ends; the target is the loop itself where the wire leaves it.
        note: what arrives where, in words.
        hops: scope and link, from the source on.
    """

    source: str
    target: str
    note: str
    hops: tuple[tuple[str, Link], ...]


@dataclass(frozen=True)
class Scope:
    """The items of a scope in the order of the flow, and the links between them."""

    name: str
    items: tuple[str, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Sketch:
    """Everything to draw: scopes by name, outermost first."""

    graph: Graph
    places: Places
    scopes: Mapping[str, Scope]
    wires: tuple[Wire, ...]
    arcs: tuple[Arc, ...]


def sketch(graph: Graph) -> Sketch:
    """The sketch of a verified graph."""
    places = Places(graph)
    wires = (*_wires(graph, places), *_exits(graph, places))
    links: dict[str, dict[Link, None]] = {name: {} for name in places.scopes}
    for wire in wires:
        for scope, link in wire.hops:
            links[scope][link] = None
    scopes = {
        name: Scope(name, _in_flow(graph, places.items(name), tuple(found)), tuple(found))
        for name, found in links.items()
    }
    return Sketch(graph, places, scopes, wires, tuple(arcs_of(graph)))


def _wires(graph: Graph, places: Places) -> Iterator[Wire]:
    """The edges of an iteration; those from one source to one node are one wire."""
    found: dict[tuple[Source, str], list[Edge]] = {}
    for edge in graph.edges:
        if not edge.lag:
            found.setdefault((edge.source, edge.target), []).append(edge)
    for (source, target), edges in found.items():
        tail = _tail(graph, source, graph.regions_of(target))
        loop = graph.node(target).loop is not None
        head = Stop(register(target) if loop else target)
        params = ", ".join(edge.param for edge in edges)
        note = f"{edges[0].type}: {source} → {params} of {target}"
        hops = places.hops(tail.item, head.item)
        yield Wire(tail.item, head.item, note, _links(hops, tail, head, source, edges[0].type))


def _exits(graph: Graph, places: Places) -> Iterator[Wire]:
    """From the body of each loop to its frame: what is read outside."""
    read = set(_read_outside(graph))
    for node in graph.nodes:
        if node.loop is None:
            continue
        for output, source in enumerate((node.loop.carried, *node.loop.emitted)):
            outer = Source(node.name, output)
            if outer not in read:
                continue
            tail = _tail(graph, source, (*graph.regions_of(node.name), node.name))
            head = Stop("", str(outer))
            kind = node.outputs[output] if output < len(node.outputs) else ""
            when = "of all steps" if output else "after the last step"
            note = f"{kind} {when}: {source} → {outer}"
            hops = places.hops(tail.item, register(node.name))
            yield Wire(tail.item, node.name, note, _links(hops, tail, head, source, kind))


def _read_outside(graph: Graph) -> Iterator[Source]:
    """The outputs that others than the nodes inside take in the same iteration."""
    edges = [edge for edge in graph.edges if not edge.lag]
    taken = [(edge.source, graph.regions_of(edge.target)) for edge in edges]
    for node in graph.nodes:
        sources = (node.loop.carried, *node.loop.emitted) if node.loop else ()
        taken += [(source, (*graph.regions_of(node.name), node.name)) for source in sources]
    for source, around in taken:
        if source.node not in around:
            yield Source(source.node, source.output)


def _tail(graph: Graph, source: Source, around: tuple[str, ...]) -> Stop:
    """Where a batch comes from, as seen inside of the loops `around`."""
    if source.node in around:
        return Stop(register(source.node))
    loop = graph.node(source.node).loop is not None
    return Stop(source.node, str(Source(source.node, source.output)) if loop else "")


def _links(
    hops: list[tuple[str, str, str]], tail: Stop, head: Stop, source: Source, label: str
) -> tuple[tuple[str, Link], ...]:
    """The links of a wire: only its first and its last end are no passages."""
    cargo, made = str(source), list[tuple[str, Link]]()
    for number, (scope, start, end) in enumerate(hops):
        first, last = number == 0, number == len(hops) - 1
        at = tail if first else Stop(start, cargo)
        to = head if last else Stop(end, cargo)
        made.append((scope, Link(at, to, cargo, label if first else "")))
    return tuple(made)


def _in_flow(graph: Graph, items: tuple[str, ...], links: tuple[Link, ...]) -> tuple[str, ...]:
    """Producers first, syncs last, otherwise as declared."""
    ahead: dict[str, set[str]] = {item: set() for item in items}
    for link in links:
        if link.tail.item and link.head.item and link.tail.item != link.head.item:
            ahead[link.head.item].add(link.tail.item)
    node = graph.by_name
    rank = {
        item: (item in node and node[item].role is Role.SYNC, number)
        for number, item in enumerate(items)
    }
    ready = [(rank[item], item) for item in items if not ahead[item]]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        _rank, item = heapq.heappop(ready)
        order.append(item)
        for other in items:
            if item in ahead[other]:
                ahead[other].remove(item)
                if not ahead[other]:
                    heapq.heappush(ready, (rank[other], other))
    return tuple(order)
