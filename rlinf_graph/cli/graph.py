"""A pipeline's graph on the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.explain.drawing import render_graph_svg, render_graph_text
from rlinf_graph.ir.graph import Graph
from rlinf_graph.nodes.plugins import load_plugins


@dataclass(frozen=True)
class Shown:
    """A graph as it was declared, and the names of the other pipelines in its file."""

    graph: Graph
    others: list[str]

    @property
    def text(self) -> str:
        """For the terminal."""
        return render_graph_text(self.graph)

    @property
    def svg(self) -> str:
        """For a file."""
        return render_graph_svg(self.graph)


def show_graph(target: str, parameters: Mapping[str, str]) -> Shown:
    """The graph of `FILE` or `FILE:NAME`, before any pass of the compiler.

    Raises:
        CompileError: with everything wrong in the file or in the pipeline's calls.
    """
    load_plugins()
    pipeline, others = load_pipeline(target)
    return Shown(pipeline.build(**parameters), others)
