"""A graph as a self-contained SVG picture, from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from rlinf_graph.compiler.explain.drawing import palette
from rlinf_graph.compiler.explain.drawing.feedback import Arc
from rlinf_graph.compiler.explain.drawing.lanes import REMARK_LINE, REMARK_SIZE
from rlinf_graph.compiler.explain.drawing.layout import (
    DETAIL_SIZE,
    NAME_SIZE,
    Box,
    Layout,
    Line,
    lay_out,
)
from rlinf_graph.compiler.explain.drawing.legend import LEGEND_SIZE, ROW, SWATCH, Entry, legend
from rlinf_graph.compiler.explain.drawing.metrics import shortened, text_width
from rlinf_graph.compiler.explain.drawing.net import LABEL_SIZE
from rlinf_graph.compiler.explain.drawing.paths import curve, elbows, number
from rlinf_graph.compiler.explain.drawing.plate import SUBTITLE_SIZE, TITLE_SIZE
from rlinf_graph.compiler.explain.drawing.sketch import Sketch, sketch
from rlinf_graph.compiler.explain.drawing.words import is_barrier, kind_of, parameters
from rlinf_graph.ir.graph import Graph

MARGIN, HEADING, HEADING_SIZE, PARAMETER_SIZE = 24.0, 54.0, 18.0, 12.0
CORNER, LONGEST_HEADING = 7.0, 90


def render_graph_svg(graph: Graph) -> str:
    """The graph as SVG text, without scripts and without anything from elsewhere.

    Elements can be found by class and attributes: `node`, `loop` and `carried` with `data-name`;
    `edge` and `feedback` with `data-from` and `data-to`.

    Args:
        graph: one that verification accepts.
    """
    return "\n".join(_Picture(sketch(graph)).lines()) + "\n"


class _Picture:
    def __init__(self, drawn: Sketch) -> None:
        self.drawn, self.graph = drawn, drawn.graph
        self.layout: Layout = lay_out(drawn)

    def lines(self) -> Iterator[str]:
        shown = shortened(parameters(self.graph), LONGEST_HEADING)
        name = text_width(self.graph.name, HEADING_SIZE, bold=True)
        heading = name + 16 + text_width(shown, PARAMETER_SIZE)
        inner = max(self.layout.width, heading, 360.0)
        entries = legend(self.drawn, inner)
        below = HEADING + self.layout.height + MARGIN
        width = inner + 2 * MARGIN
        height = below + max((entry.y for entry in entries), default=0.0) + ROW + MARGIN / 2
        size = f'width="{number(width)}" height="{number(height)}"'
        box = f'viewBox="0 0 {number(width)} {number(height)}"'
        yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} role="img">'
        yield f"<title>{escape(self.graph.name)}</title>"
        yield from _style()
        yield f'<rect width="{number(width)}" height="{number(height)}" fill="{palette.PAPER}"/>'
        yield _text(MARGIN, 34, self.graph.name, "heading")
        yield _text(MARGIN + name + 16, 34, shown, "parameters")
        yield f'<g transform="translate({number(MARGIN)},{number(HEADING)})">'
        yield from self._drawing()
        yield "</g>"
        yield f'<g class="legend" transform="translate({number(MARGIN)},{number(below)})">'
        for entry in entries:
            yield from _legend_entry(entry)
        yield "</g>"
        yield "</svg>"

    def _drawing(self) -> Iterator[str]:
        made = self.layout
        for frame, title in zip(made.frames, made.titles, strict=True):
            yield from self._frame(frame, title)
        for line in made.wires:
            yield self._edge(line)
        for line in made.arcs:
            yield _feedback(line)
        for x, y in made.passages:
            yield f'<circle class="passage" cx="{number(x)}" cy="{number(y)}" r="3"/>'
        for label in made.labels:
            yield self._label(label)
        for box in made.registers:
            yield from _register(box)
        for box in made.nodes:
            yield from self._node(box)
        for arc, box in made.remarks:
            yield from _remark(arc, box)

    def _frame(self, frame: Box, title: Box) -> Iterator[str]:
        fill = palette.frame_fill(self._depth(frame.name))
        yield f'<g class="loop" data-name={quoteattr(frame.name)}>'
        yield f'<rect {_rect(frame)} rx="10" fill="{fill}" stroke="#9aa5b4" stroke-width="1.2"/>'
        if is_barrier(self.graph.node(frame.name)):
            yield _bar(frame)
        yield _text(title.x, title.y + 18, title.text[0], "title")
        yield _text(title.x, title.y + 32, title.text[1], "subtitle")
        yield "</g>"

    def _node(self, box: Box) -> Iterator[str]:
        node = self.graph.node(box.name)
        fill, border, _word = palette.NODES[kind_of(node)]
        middle = box.x + box.width / 2
        yield f'<g class="node" data-name={quoteattr(box.name)}>'
        yield f"<title>{escape(box.name)}</title>"
        yield f'<rect {_rect(box)} rx="{number(CORNER)}" fill="{fill}" stroke="{border}"/>'
        if is_barrier(node):
            yield _bar(box)
        yield _text(middle, box.y + 21, box.text[0], "name")
        yield _text(middle, box.y + 37, box.text[1], "detail")
        yield "</g>"

    def _edge(self, line: Line) -> str:
        ends = f"data-from={quoteattr(line.source)} data-to={quoteattr(line.target)}"
        inside = line.wire is not None and line.wire.hops[-1][1].head.item == ""
        marker = "" if inside else ' marker-end="url(#arrow)"'
        note = escape(line.wire.note) if line.wire else ""
        path = f'<path class="edge" {ends} d="{curve(line.points)}"{marker}>'
        return f"{path}<title>{note}</title></path>"

    def _label(self, label: Box) -> str:
        fill = palette.frame_fill(self._depth(label.scope))
        text = _text(label.x + label.width / 2, label.y + 11.5, label.text[0], "batch")
        return f'<g class="label"><rect {_rect(label)} fill="{fill}"/>{text}</g>'

    def _depth(self, scope: str) -> int:
        return len(self.graph.regions_of(scope)) + 1 if scope else 0


def _style() -> Iterator[str]:
    ink, grey, line = palette.INK, palette.GREY, palette.LINE
    yield "<style>"
    yield f"text {{ font-family: {palette.FONT}; fill: {ink}; }}"
    yield f".heading {{ font-size: {HEADING_SIZE}px; font-weight: 600; }}"
    yield f".parameters {{ font-size: {PARAMETER_SIZE}px; fill: {grey}; }}"
    yield f".title {{ font-size: {TITLE_SIZE}px; font-weight: 600; fill: #3d4753; }}"
    yield f".subtitle {{ font-size: {SUBTITLE_SIZE}px; fill: {grey}; }}"
    yield f".name {{ font-size: {NAME_SIZE}px; font-weight: 600; text-anchor: middle; }}"
    yield f".detail {{ font-size: {DETAIL_SIZE}px; fill: {grey}; text-anchor: middle; }}"
    yield f".batch {{ font-size: {LABEL_SIZE}px; fill: #3d4753; text-anchor: middle; }}"
    yield f".remark {{ font-size: {REMARK_SIZE}px; }}"
    yield f".key {{ font-size: {LEGEND_SIZE}px; fill: {grey}; }}"
    yield f".edge {{ fill: none; stroke: {line}; stroke-width: 1.4; }}"
    yield ".feedback { fill: none; stroke-width: 1.5; }"
    yield f".passage {{ fill: #ffffff; stroke: {line}; stroke-width: 1.2; }}"
    yield "</style>"
    yield "<defs>"
    yield _marker("arrow", line)
    for kind, (color, _text) in palette.ARCS.items():
        yield _marker(f"arrow-{kind}", color)
    yield "</defs>"


def _marker(name: str, color: str) -> str:
    size = 'markerWidth="8" markerHeight="8" refX="7" refY="4"'
    form = f'<path d="M0.5,0.8L7.5,4L0.5,7.2Z" fill="{color}"/>'
    return f'<marker id="{name}" {size} orient="auto" markerUnits="userSpaceOnUse">{form}</marker>'


def _feedback(line: Line) -> str:
    if line.arc is None:
        return ""
    kind = line.arc.kind
    ends = f"data-from={quoteattr(line.source)} data-to={quoteattr(line.target)}"
    look = f'stroke="{palette.ARCS[kind][0]}" stroke-dasharray="{palette.DASHES[kind]}"'
    marker = f' marker-end="url(#arrow-{kind})"' if line.target else ""
    return f'<path class="feedback {kind}" {ends} d="{elbows(line.points)}" {look}{marker}/>'


def _remark(arc: Arc, box: Box) -> Iterator[str]:
    color = palette.ARCS[arc.kind][0]
    for number_of, said in enumerate(box.text):
        y = box.y + REMARK_LINE * (number_of + 1) - 3
        weight = ' font-weight="600"' if number_of == 0 else ""
        at = f'x="{number(box.x)}" y="{number(y)}"'
        yield f'<text class="remark" {at}{weight} style="fill: {color}">{escape(said)}</text>'


def _register(box: Box) -> Iterator[str]:
    color = palette.ARCS["step"][0]
    yield f'<g class="carried" data-name={quoteattr(box.name)}>'
    look = f'rx="{number(box.height / 2)}" fill="#ffffff" stroke="{color}"'
    yield f"<rect {_rect(box)} {look}/>"
    yield _text(box.x + box.width / 2, box.y + 16, box.text[0], "detail")
    yield "</g>"


def _legend_entry(entry: Entry) -> Iterator[str]:
    middle = number(entry.y + 8)
    if entry.node:
        fill, border, _word = palette.NODES[entry.node]
        at = f'x="{number(entry.x)}" y="{number(entry.y + 1)}" width="{number(SWATCH)}" height="14"'
        yield f'<rect {at} rx="4" fill="{fill}" stroke="{border}"/>'
    elif entry.arc:
        look = (
            f'stroke="{palette.ARCS[entry.arc][0]}" stroke-dasharray="{palette.DASHES[entry.arc]}"'
        )
        to = number(entry.x + SWATCH)
        yield f'<path d="M{number(entry.x)},{middle}L{to},{middle}" {look} stroke-width="1.5"/>'
    else:
        at = f'x="{number(entry.x)}" y="{number(entry.y + 5)}" width="{number(SWATCH)}"'
        yield f'<rect {at} height="{number(palette.BAR_HEIGHT)}" rx="2" fill="{palette.BAR}"/>'
    yield _text(entry.x + SWATCH + 6, entry.y + 12, entry.text, "key")


def _bar(box: Box) -> str:
    at = f'x="{number(box.x - 2)}" y="{number(box.y - 1)}" width="{number(box.width + 4)}"'
    return (
        f'<rect class="barrier" {at} height="{number(palette.BAR_HEIGHT)}" rx="2" '
        f'fill="{palette.BAR}"/>'
    )


def _rect(box: Box) -> str:
    place = f'x="{number(box.x)}" y="{number(box.y)}"'
    return f'{place} width="{number(box.width)}" height="{number(box.height)}"'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{number(x)}" y="{number(y)}">{escape(text)}</text>'
