"""Drop what nothing reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role


def prune_unread(graph: Graph) -> Graph:
    """Drop nodes that only produce batches which no other node takes, and unused models."""
    nodes = _without_unused_inputs(graph.nodes)
    while True:
        left = {node.name for node in nodes}
        read = _read(graph, nodes)
        kept = tuple(
            node
            for node in nodes
            if (node.name in read or _acts(node)) and (not node.region or node.region in left)
        )
        if len(kept) == len(nodes):
            break
        nodes = kept
    used = {use.model for node in nodes for use in node.models}
    models = tuple(m for m in graph.models if m.name in used)
    known = {name for node in nodes for _param, name in node.envs} | {m.env for m in models}
    envs = tuple(env for env in graph.envs if env.name in known)
    return replace(graph, nodes=nodes, models=models, envs=envs)


def _read(graph: Graph, nodes: tuple[Node, ...]) -> set[str]:
    """The nodes that others read, and the loops in which something acts.

    A loop is not read by its own body, which takes what the loop carries.
    """
    around = {node.name: graph.regions_of(node.name) for node in nodes}
    read = {s.node for node in nodes for s in _taken(node) if s.node not in around[node.name]}
    return read | {region for node in nodes if _acts(node) for region in around[node.name]}


def _taken(node: Node) -> Iterator[Source]:
    """What a node reads; of a region what its body makes for it."""
    yield from (edge.source for edge in node.inputs)
    if node.loop is not None:
        yield from (node.loop.carried, *node.loop.emitted)


def _without_unused_inputs(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """A loss without a KL term does not read the reference: the edge goes."""
    return tuple(_trim(node) if node.role is Role.TRAIN else node for node in nodes)


def _trim(node: Node) -> Node:
    unread: tuple[str, ...] = getattr(node.option("loss"), "unread", tuple)()
    return replace(node, inputs=tuple(i for i in node.inputs if i.param not in unread))


def _acts(node: Node) -> bool:
    """Whether the node does more than hand on batches."""
    return node.role in (Role.TRAIN, Role.SYNC, Role.EVALUATE) or not node.outputs
