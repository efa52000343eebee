"""What is done to a graph before it is planned, in order. Each pass leaves the graph valid."""

from __future__ import annotations

from collections.abc import Callable

from rlinf_graph.compiler.passes.check_sizes import check_sizes
from rlinf_graph.compiler.passes.check_weights import check_weights
from rlinf_graph.compiler.passes.infer_spaces import infer_spaces
from rlinf_graph.compiler.passes.infer_volumes import infer_volumes
from rlinf_graph.compiler.passes.prune_unread import prune_unread
from rlinf_graph.compiler.passes.verify import verify
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic, raise_errors
from rlinf_graph.ir.graph import Graph

Pass = Callable[[Graph], Graph]
UNSOUND = ("RG0101", "RG0102", "RG0104", "RG02", "RG05")
"""Findings after which volumes cannot be worked out."""

PASSES: tuple[Pass, ...] = (
    verify,
    check_weights,
    prune_unread,
    infer_spaces,
    infer_volumes,
    check_sizes,
)


def run_passes(graph: Graph, after: Callable[[str, Graph], None] | None = None) -> Graph:
    """Run every pass.

    Args:
        graph: as built or loaded.
        after: called with the name of each pass and the graph that it left.

    Raises:
        CompileError: with everything that is wrong: a pass that fails does not keep the later ones
            from looking, unless what it found leaves them nothing sound to look at.
    """
    found: list[Diagnostic] = []
    for step in PASSES:
        try:
            graph = step(graph)
        except CompileError as error:
            known = {d.span for d in found}
            found += [d for d in error.diagnostics if d.span is None or d.span not in known]
        if any(d.code.startswith(UNSOUND) for d in found) and step is not verify:
            break
        if found:
            continue
        if after is not None:
            after(step.__name__, graph)
    raise_errors(found)
    return graph
