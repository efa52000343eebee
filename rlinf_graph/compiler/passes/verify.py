"""The graph is well formed, and every node's own conditions hold."""

from __future__ import annotations

from rlinf_graph.dsl.node import definitions, node_types
from rlinf_graph.ir import verify as ir_verify
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic, raise_errors
from rlinf_graph.ir.graph import Graph


def verify(graph: Graph) -> Graph:
    """Return the graph unchanged.

    Raises:
        CompileError: with all that is wrong with its types, and with the calls of its nodes.
    """
    raise_errors([d for rule in ir_verify.STRUCTURE for d in rule(graph, node_types())])
    found: list[Diagnostic] = []
    try:
        ir_verify.verify(graph, node_types())
    except CompileError as error:
        found += error.diagnostics
    for node in graph.nodes:
        definition = definitions.get(node.type)
        if definition is not None and definition.check is not None:
            reported = {(d.span, d.code) for d in found}
            found += [d for d in definition.check(node, graph) if (d.span, d.code) not in reported]
    raise_errors(found)
    return graph
