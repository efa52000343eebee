"""What the colours and lines of a picture mean: only those that it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlinf_graph.compiler.explain.drawing.feedback import ArcKind
from rlinf_graph.compiler.explain.drawing.metrics import text_width
from rlinf_graph.compiler.explain.drawing.palette import ARCS, BARRIER_TEXT, NODES
from rlinf_graph.compiler.explain.drawing.sketch import Sketch
from rlinf_graph.compiler.explain.drawing.words import KINDS, Kind, is_barrier, kind_of

LEGEND_SIZE, SWATCH, ROW = 11.0, 22.0, 22.0
BESIDE, BETWEEN = 6.0, 18.0


@dataclass(frozen=True)
class Entry:
    """A swatch at `x`, `y`, of a node, an arc or else a barrier, and a text to its right."""

    x: float
    y: float
    text: str
    node: Kind | None = None
    arc: ArcKind | None = None

    @property
    def width(self) -> float:
        """Pixels."""
        return SWATCH + BESIDE + text_width(self.text, LEGEND_SIZE)


def legend(drawn: Sketch, width: float) -> list[Entry]:
    """Entries side by side, in as many rows as the width asks for; from 0, 0."""
    placed: list[Entry] = []
    x = y = 0.0
    for entry in _entries(drawn):
        if x and x + entry.width > width:
            x, y = 0.0, y + ROW
        placed.append(Entry(x, y, entry.text, entry.node, entry.arc))
        x += entry.width + BETWEEN
    return placed


def _entries(drawn: Sketch) -> Iterator[Entry]:
    nodes = [node for node in drawn.graph.nodes if node.loop is None]
    seen = {kind_of(node) for node in nodes}
    for kind in KINDS:
        if kind in seen:
            yield Entry(0, 0, NODES[kind][2], node=kind)
    if any(map(is_barrier, drawn.graph.nodes)):
        yield Entry(0, 0, BARRIER_TEXT)
    drawn_arcs = {arc.kind for arc in drawn.arcs}
    for kind, (_color, text) in ARCS.items():
        if kind in drawn_arcs:
            yield Entry(0, 0, text, arc=kind)
