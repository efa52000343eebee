"""What is done to a graph before it is planned, in order. Each pass leaves the graph valid."""

from __future__ import annotations

from collections.abc import Callable

from rlinf_graph.compiler.passes.check_sizes import check_sizes
from rlinf_graph.compiler.passes.check_weights import check_weights
from rlinf_graph.compiler.passes.infer_volumes import infer_volumes
from rlinf_graph.compiler.passes.prune_unread import prune_unread
from rlinf_graph.compiler.passes.verify import verify
from rlinf_graph.ir.graph import Graph

Pass = Callable[[Graph], Graph]

PASSES: tuple[Pass, ...] = (
    verify,
    check_weights,
    prune_unread,
    infer_volumes,
    check_sizes,
)


def run_passes(graph: Graph, after: Callable[[str, Graph], None] | None = None) -> Graph:
    """Run every pass.

    Args:
        graph: as built or loaded.
        after: called with the name of each pass and the graph that it left.

    Raises:
        CompileError: with everything that the first failing pass found.
    """
    for step in PASSES:
        graph = step(graph)
        if after is not None:
            after(step.__name__, graph)
    return graph
