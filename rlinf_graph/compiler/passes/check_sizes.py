"""Batches, groups and minibatches divide."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role


def check_sizes(graph: Graph) -> Graph:
    """Return the graph unchanged.

    Raises:
        CompileError: where a batch cannot be cut as asked for.
    """
    raise_errors([d for node in graph.with_role(Role.TRAIN) for d in _minibatches(graph, node)])
    return graph


def _minibatches(graph: Graph, node: Node) -> Iterator[Diagnostic]:
    edge = node.inputs[0]
    producer = graph.node(edge.source.node)
    samples, minibatch = producer.volume[edge.source.output].samples, node.option("minibatch")
    if minibatch is None or samples % minibatch == 0:
        return
    fits = [m for m in range(1, samples + 1) if samples % m == 0]
    near = min(fits, key=lambda m: (abs(m - minibatch), m))
    yield Diagnostic(
        "RG0403",
        f"minibatch {minibatch} does not divide the {samples} samples of an iteration",
        node.at("minibatch"),
        label=f"{samples} % {minibatch} = {samples % minibatch}",
        notes=(f"the samples come from `{producer.name}` at {producer.span}",),
        help=(f"minibatch={near}",),
    )
