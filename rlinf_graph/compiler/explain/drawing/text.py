"""A graph as text for a terminal: a line for each node, in the order of the flow."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rlinf_graph.compiler.explain.drawing.flow import Flow
from rlinf_graph.compiler.explain.drawing.palette import BARRIER_TEXT
from rlinf_graph.compiler.explain.drawing.sketch import sketch
from rlinf_graph.compiler.explain.drawing.table import BARRIER, CARRIED, LEAVES, table_lines
from rlinf_graph.compiler.explain.drawing.words import counted, parameters
from rlinf_graph.compiler.explain.lines import wrapped
from rlinf_graph.ir.graph import Graph

LEGEND = {
    BARRIER: BARRIER_TEXT,
    CARRIED: "from step to step",
    LEAVES: "out of the loop",
    "⇢": "in the next iteration, or step of a loop",
}


def render_graph_text(graph: Graph, width: int = 100) -> str:
    """The graph in at most `width` columns, as far as its names allow.

    Nodes are numbered as they come. `takes` has the numbers of those that give to a node, `makes`
    says which batch goes to whom.

    Args:
        graph: one that verification accepts.
        width: columns of the terminal.
    """
    flow = Flow(sketch(graph))
    blocks = [_head(graph, width), table_lines(flow, width), list(_feedback(flow, width))]
    seen = "\n".join(line for lines in blocks for line in lines)
    legend = [f"{mark} {text}" for mark, text in LEGEND.items() if mark in seen]
    blocks.append(list(wrapped(legend, width)))
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _head(graph: Graph, width: int) -> list[str]:
    loops = sum(node.loop is not None for node in graph.nodes)
    said = [graph.name, counted(len(graph.nodes) - loops, "node")]
    said += [counted(loops, "loop")] if loops else []
    said += [given] if (given := parameters(graph)) else []
    return textwrap.wrap(" · ".join(said), width, subsequent_indent="  ")


def _feedback(flow: Flow, width: int) -> Iterator[str]:
    pairs = list(flow.feedback())
    size = max((len(ends) for ends, _said in pairs), default=0)
    for place, (ends, said) in enumerate(pairs):
        head = (" feedback  " if place == 0 else " " * 11) + ends.ljust(size) + "  "
        yield from textwrap.wrap(
            said, width, initial_indent=head, subsequent_indent=" " * len(head)
        )
