"""Why this plan, and what a run of it took: a report of figures, and its forms as text and JSON."""

from rlinf_graph.compiler.explain.analysis import render_analysis
from rlinf_graph.compiler.explain.analyze import analyze
from rlinf_graph.compiler.explain.build import explain
from rlinf_graph.compiler.explain.json import render_json
from rlinf_graph.compiler.explain.report import Report
from rlinf_graph.compiler.explain.text import render_text

__all__ = ["Report", "analyze", "explain", "render_analysis", "render_json", "render_text"]
