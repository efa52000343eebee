"""The layout of a graph: scopes from the inside out, then everything on one page.

A loop is laid out first and stands as one box in the scope around it, so its nodes stay together
and nothing of the outside comes between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlinf_graph.compiler.explain.drawing.feedback import Arc
from rlinf_graph.compiler.explain.drawing.legs import (
    Leg,
    Point,
    item_vertices,
    legs_by_scope,
    margin,
)
from rlinf_graph.compiler.explain.drawing.metrics import shortened, text_width
from rlinf_graph.compiler.explain.drawing.net import Block
from rlinf_graph.compiler.explain.drawing.places import ROOT, register
from rlinf_graph.compiler.explain.drawing.plate import Plate, arrange, title_width
from rlinf_graph.compiler.explain.drawing.rows import TITLE_HEIGHT
from rlinf_graph.compiler.explain.drawing.sketch import Sketch, Wire
from rlinf_graph.compiler.explain.drawing.words import detail, loop_name, loop_steps

NAME_SIZE, DETAIL_SIZE = 13.0, 11.0
BOX_HEIGHT, BOX_PAD, LEAST_WIDTH = 46.0, 12.0, 96.0
REGISTER_HEIGHT, REGISTER_WIDTH, REGISTER_TEXT = 24.0, 84.0, "carried"
LONGEST_NAME = 36


@dataclass(frozen=True)
class Box:
    """A rectangle on the page: a node, a loop's frame, a loop's register, or the room of a text."""

    name: str
    x: float
    y: float
    width: float
    height: float
    text: tuple[str, ...] = ()
    scope: str = ""


@dataclass(frozen=True)
class Line:
    """A wire, or an arc to one of its targets, and the points along it."""

    source: str
    target: str
    points: tuple[Point, ...]
    wire: Wire | None = None
    arc: Arc | None = None


@dataclass(frozen=True)
class Layout:
    """Everything with its place on the page, in pixels; `titles` are those of `frames`."""

    width: float
    height: float
    frames: tuple[Box, ...]
    titles: tuple[Box, ...]
    registers: tuple[Box, ...]
    nodes: tuple[Box, ...]
    labels: tuple[Box, ...]
    remarks: tuple[tuple[Arc, Box], ...]
    wires: tuple[Line, ...]
    arcs: tuple[Line, ...]
    passages: tuple[Point, ...]


def lay_out(drawn: Sketch) -> Layout:
    """The layout of a sketch."""
    return _Page(drawn).layout()


class _Page:
    """Plates of all scopes, and where on the page each has its top left corner."""

    def __init__(self, drawn: Sketch) -> None:
        self.drawn = drawn
        self.places, self.graph = drawn.places, drawn.graph
        self.legs = legs_by_scope(drawn.places, drawn.arcs)
        self.plates: dict[str, Plate] = {}
        for scope in reversed(drawn.places.scopes):
            self.plates[scope] = self._plate(scope)
        self.corners: dict[str, Point] = {ROOT: (0.0, 0.0)}
        for scope in drawn.places.scopes:
            for region in self._loops(scope):
                box = self._box(scope, region)
                self.corners[region] = (box.x, box.y)

    def layout(self) -> Layout:
        frames = [self._box(s, r) for s in self.places.scopes for r in self._loops(s)]
        whole = self.plates[ROOT]
        return Layout(
            width=whole.width,
            height=whole.height,
            frames=tuple(frames),
            titles=tuple(map(self._title, frames)),
            registers=tuple(self._box(r, register(r), (REGISTER_TEXT,)) for r in self.plates if r),
            nodes=tuple(
                self._box(node.region, node.name, self._lines(node.name))
                for node in self.graph.nodes
                if node.loop is None
            ),
            labels=tuple(box for scope in self.places.scopes for box in self._labels(scope)),
            remarks=tuple(pair for scope in self.places.scopes for pair in self._remarks(scope)),
            wires=tuple(map(self._wire, self.drawn.wires)),
            arcs=tuple(line for n, arc in enumerate(self.drawn.arcs) for line in self._arc(n, arc)),
            passages=tuple(dot for scope in self.places.scopes for dot in self._passages(scope)),
        )

    def _plate(self, scope: str) -> Plate:
        items = self.places.items(scope)
        blocks = {item: self._block(item, self.legs[scope]) for item in items}
        sides = {item: self.plates[item].sides() for item in items if item in self.plates}
        texts = {n: (arc.subject, *arc.remarks) for n, arc in enumerate(self.drawn.arcs)}
        title = self._title_lines(scope) if scope else ()
        return arrange(self.drawn.scopes[scope], blocks, self.legs[scope], sides, texts, title)

    def _block(self, item: str, legs: list[Leg]) -> Block:
        room = margin(sum(leg.item == item for leg in legs))
        if item in self.plates:
            return self.plates[item].block(room)
        if item not in self.graph.by_name:
            return Block(REGISTER_WIDTH, REGISTER_HEIGHT, margin=room)
        name, second = self._lines(item)
        text = max(text_width(name, NAME_SIZE, bold=True), text_width(second, DETAIL_SIZE))
        return Block(max(LEAST_WIDTH, text + 2 * BOX_PAD), BOX_HEIGHT, margin=room)

    def _lines(self, node: str) -> tuple[str, str]:
        second = detail(self.graph, self.graph.node(node))
        return shortened(node, LONGEST_NAME), shortened(second, LONGEST_NAME)

    def _loops(self, scope: str) -> list[str]:
        return [item for item in self.places.items(scope) if item in self.plates]

    def _box(self, scope: str, item: str, text: tuple[str, ...] = ()) -> Box:
        vertex = item_vertices(self.plates[scope].net)[item]
        block = self.plates[scope].net.blocks[item]
        left, top = self.corners[scope]
        x, y = left + vertex.x - block.width / 2, top + vertex.y
        return Box(item, x, y, block.width, block.height, text, scope)

    def _title_lines(self, region: str) -> tuple[str, str]:
        node = self.graph.node(region)
        return shortened(loop_name(node), LONGEST_NAME), loop_steps(node)

    def _title(self, frame: Box) -> Box:
        lines, at = self._title_lines(frame.name), self.plates[frame.name].title_at
        x, width = frame.x + at, title_width(lines)
        return Box(frame.name, x, frame.y, width, TITLE_HEIGHT, lines, frame.name)

    def _labels(self, scope: str) -> Iterator[Box]:
        left, top = self.corners[scope]
        for v in self.plates[scope].net.vertices:
            if v.label:
                x, width = left + v.x - v.left, v.left + v.right
                yield Box(v.label, x, top + v.y, width, v.height, (v.label,), scope)

    def _remarks(self, scope: str) -> Iterator[tuple[Arc, Box]]:
        left, top = self.corners[scope]
        for lane in self.plates[scope].lanes:
            x, y = left + lane.text_left, top + lane.text_top
            box = Box("", x, y, lane.text_width, lane.text_height, lane.lines, scope)
            yield self.drawn.arcs[lane.arc], box

    def _passages(self, scope: str) -> Iterator[Point]:
        left, top = self.corners[scope]
        net = self.plates[scope].net
        for number in [*net.rows[0], *net.rows[-1]] if scope else []:
            yield left + net.vertices[number].x, top + net.vertices[number].y

    def _wire(self, wire: Wire) -> Line:
        points: list[Point] = []
        for scope, link in wire.hops:
            points += self._moved(scope, self.plates[scope].route(link))
        return Line(wire.source, wire.target, _thinned(points), wire=wire)

    def _arc(self, number: int, arc: Arc) -> Iterator[Line]:
        out = self._outwards(number, "")
        for target in arc.targets:
            points = [*out, *reversed(self._outwards(number, target))]
            yield Line(arc.source, target, _thinned(points), arc=arc)
        if not arc.targets:
            yield Line(arc.source, "", _thinned(out), arc=arc)

    def _outwards(self, number: int, target: str) -> list[Point]:
        """From an item of an arc to the arc's lane."""
        points: list[Point] = []
        for scope in reversed(self.places.scopes):
            for leg in self.legs[scope]:
                if leg.end == (number, target):
                    points += self._moved(scope, self.plates[scope].leg_points(leg))
        return points

    def _moved(self, scope: str, points: list[Point]) -> list[Point]:
        left, top = self.corners[scope]
        return [(left + x, top + y) for x, y in points]


def _thinned(points: list[Point]) -> tuple[Point, ...]:
    """Without points at the same place one after another."""
    kept = points[:1]
    for point in points[1:]:
        if max(abs(point[0] - kept[-1][0]), abs(point[1] - kept[-1][1])) > 1e-6:
            kept.append(point)
    return tuple(kept)
