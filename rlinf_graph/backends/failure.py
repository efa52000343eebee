"""An exception in a worker, as a diagnostic that names the node and the line that declared it."""

from __future__ import annotations

import traceback
from pathlib import Path

import rlinf_graph
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.graph import Node
from rlinf_graph.ir.position import Position

_PACKAGE = str(Path(rlinf_graph.__file__).parent)


def failed(node: Node, at: Position, error: BaseException, where: str = "") -> CompileError:
    """RG0607 for an exception that `node` raised at a position of the program.

    `where` is the place of the process, where there are several.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_PACKAGE)]
    lines = [f"{frame.filename}:{frame.lineno}: {frame.line}" for frame in (own or frames)[-2:]]
    notes = (*(f"raised at {line}" for line in lines), *([where] if where else []))
    return CompileError(
        [
            Diagnostic(
                "RG0607",
                f"`{node.name}` failed in iteration {at.iteration}, rank {at.rank}: "
                f"{type(error).__name__}: {error}",
                node.span,
                label="declared here",
                notes=notes,
            )
        ]
    )
