"""A pipeline's graph as text and as a picture."""

from rlinf_graph.compiler.explain.drawing.svg import render_graph_svg
from rlinf_graph.compiler.explain.drawing.text import render_graph_text

__all__ = ["render_graph_svg", "render_graph_text"]
