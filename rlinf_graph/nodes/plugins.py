"""The node types: the built-in ones, and those of installed packages."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from rlinf_graph.ir.diagnostic import fail

BUILT_IN = (
    "rlinf_graph.dsl.feedback",
    "rlinf_graph.dsl.loop",
    "rlinf_graph.nodes.advantage",
    "rlinf_graph.nodes.data",
    "rlinf_graph.nodes.dialog",
    "rlinf_graph.nodes.env",
    "rlinf_graph.nodes.evaluate",
    "rlinf_graph.nodes.filter",
    "rlinf_graph.nodes.reward",
    "rlinf_graph.nodes.rollout",
    "rlinf_graph.nodes.tool_use",
    "rlinf_graph.nodes.train",
)


def load_plugins() -> None:
    """Import every module that defines node types.

    Installed packages name theirs by entry points of group `rlinf_graph.nodes`.

    Raises:
        CompileError: RG0508, when such a module cannot be imported.
    """
    for module in BUILT_IN:
        importlib.import_module(module)
    for point in entry_points(group="rlinf_graph.nodes"):
        try:
            point.load()
        except Exception as error:
            message = f"the node plugin `{point.name}` ({point.value}) cannot be imported: {error}"
            raise fail("RG0508", message) from error
