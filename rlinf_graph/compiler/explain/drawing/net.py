"""A scope as vertices in rows: items, the bends of links that pass by, and passages in its frame.

Row 0 is the frame's top and the last row its bottom; items stand in the even rows between, and each
odd row holds the labels of what the row above sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from rlinf_graph.compiler.explain.drawing.metrics import text_width
from rlinf_graph.compiler.explain.drawing.sketch import Link, Scope, Stop

LABEL_SIZE, LABEL_HEIGHT = 11.0, 15.0
PORT_PITCH, BEND = 24.0, 4.0
TO_LABEL, STRAIGHT, TO_END = 3.0, 100.0, 1.0
"""What a pixel to the side costs: from a tail to its label, in the middle, and before a head."""


@dataclass(frozen=True)
class Block:
    """How much room an item takes, in pixels.

    Attributes:
        width, height: of its box.
        entries, exits: of a loop: where passages are, from the middle; None for a plain box.
        margin: free room to the right, for feedback.
    """

    width: float
    height: float
    entries: Mapping[str, float] | None = None
    exits: Mapping[str, float] | None = None
    margin: float = 0.0


@dataclass
class Vertex:
    """Something in a row; `x` is its middle, `y` its top."""

    row: int
    left: float
    right: float
    height: float = 0.0
    item: str = ""
    port: str = ""
    label: str = ""
    x: float = 0.0
    y: float = 0.0

    @property
    def is_bend(self) -> bool:
        """Whether a link only passes by, under its label or without."""
        return not self.item and not self.port


@dataclass
class Segment:
    """A piece of a link between neighbouring rows; `start`, `end` are offsets from the middles."""

    up: int
    down: int
    weight: float
    start: float = 0.0
    end: float = 0.0


@dataclass
class Net:
    """Vertices by number, and the segments between them.

    Attributes:
        vertices: by number.
        rows: numbers from left to right.
        blocks: sizes of the items.
        above, below: segments that arrive at a vertex and leave it.
        routes: of the links, from tail to head.
    """

    vertices: list[Vertex]
    rows: list[list[int]]
    blocks: Mapping[str, Block]
    above: list[list[Segment]] = field(default_factory=list[list[Segment]])
    below: list[list[Segment]] = field(default_factory=list[list[Segment]])
    routes: dict[Link, list[Segment]] = field(default_factory=dict[Link, list[Segment]])

    def into_row(self, row: int) -> list[Segment]:
        """The segments between a row and the one above it."""
        return [segment for vertex in self.rows[row] for segment in self.above[vertex]]


def layers(scope: Scope) -> dict[str, int]:
    """Items by layer from 0: below all that they take, sources just above their first reader."""
    links = [x for x in scope.links if x.tail.item and x.head.item and x.tail.item != x.head.item]
    layer = dict.fromkeys(scope.items, 0)
    for item in scope.items:
        above = [layer[x.tail.item] + 1 for x in links if x.head.item == item]
        layer[item] = max(above, default=0)
    for item in reversed(scope.items):
        below = [layer[x.head.item] - 1 for x in links if x.tail.item == item]
        if below and not any(x.head.item == item for x in scope.links):
            layer[item] = max(layer[item], min(below))
    return layer


class Weaver:
    """Makes the net of a scope."""

    def __init__(self, scope: Scope, blocks: Mapping[str, Block]) -> None:
        """`blocks` are the items' sizes."""
        self.scope, self.blocks = scope, blocks
        self.layer = layers(scope)
        self.last = 2 * max(self.layer.values(), default=0) + 4
        self.net = Net([], [[] for _ in range(self.last + 1)], blocks)
        self._places: dict[Stop, int] = {}
        self._bends: dict[tuple[int, str, int], int] = {}
        self._known: dict[tuple[int, int, str], Segment] = {}

    def weave(self) -> Net:
        """Vertices in the order of the flow, then the bends of each link."""
        for item in self.scope.items:
            block, row = self.blocks[item], 2 * self.layer[item] + 2
            half = block.width / 2
            vertex = Vertex(row, half, half + block.margin, block.height, item=item)
            self._places[Stop(item)] = self._add(vertex)
        for link in self.scope.links:
            self.net.routes[link] = self._route(link)
        for above, below in zip(self.net.above, self.net.below, strict=True):
            for segment in below:
                if len(below) == len(self.net.above[segment.down]) == 1 and len(above) == 1:
                    segment.weight = max(segment.weight, TO_LABEL)
        return self.net

    def _route(self, link: Link) -> list[Segment]:
        tail, head = self._place(link.tail, 0), self._place(link.head, self.last)
        first, end = self.net.vertices[tail].row + 1, self.net.vertices[head].row
        between = (self._bend(tail, link, row, row == first) for row in range(first, end))
        return [
            self._segment(up, down, link.head.port if down == head else link.cargo)
            for up, down in pairwise([tail, *between, head])
        ]

    def _place(self, stop: Stop, edge_row: int) -> int:
        """The vertex of an end; passages in the frame appear with the first link through them."""
        key = Stop(stop.item) if stop.item else Stop("", f"{edge_row}:{stop.port}")
        if key not in self._places:
            self._places[key] = self._add(Vertex(edge_row, BEND, BEND, port=stop.port))
        return self._places[key]

    def _bend(self, tail: int, link: Link, row: int, first: bool) -> int:
        key = (tail, link.cargo, row)
        if key not in self._bends:
            label = link.label if first else ""
            half = text_width(label, LABEL_SIZE) / 2 + 3 if label else BEND
            height = LABEL_HEIGHT if label else 0.0
            self._bends[key] = self._add(Vertex(row, half, half, height, label=label))
        return self._bends[key]

    def _segment(self, up: int, down: int, port: str) -> Segment:
        key = (up, down, port if self.net.vertices[down].item else "")
        if key not in self._known:
            made = Segment(up, down, self._weight(up, down))
            self._known[key] = made
            self.net.below[up].append(made)
            self.net.above[down].append(made)
        return self._known[key]

    def _weight(self, up: int, down: int) -> float:
        tail, head = self.net.vertices[up], self.net.vertices[down]
        if head.label:
            return TO_LABEL
        return STRAIGHT if tail.is_bend and head.is_bend and not tail.label else TO_END

    def _add(self, vertex: Vertex) -> int:
        self.net.vertices.append(vertex)
        self.net.above.append([])
        self.net.below.append([])
        number = len(self.net.vertices) - 1
        self.net.rows[vertex.row].append(number)
        return number


def fix_passages(net: Net) -> None:
    """Offsets of the segments that end at loops, whose passages are where the inside put them."""
    for link, route in net.routes.items():
        tail, head = net.vertices[route[0].up], net.vertices[route[-1].down]
        if tail.item and (exits := net.blocks[tail.item].exits) is not None:
            route[0].start = exits[link.tail.port]
        if head.item and (entries := net.blocks[head.item].entries) is not None:
            route[-1].end = entries[link.head.port]


def spread_ports(net: Net) -> None:
    """Offsets of the segments that end at plain boxes: evenly, in the order of the other ends."""
    place = {vertex: number for row in net.rows for number, vertex in enumerate(row)}
    for number, vertex in enumerate(net.vertices):
        if not vertex.item:
            continue
        block = net.blocks[vertex.item]
        if block.entries is None:
            above = sorted(net.above[number], key=lambda s: place[s.up])
            for segment, offset in zip(above, _evenly(len(above), block.width), strict=True):
                segment.end = offset
        if block.exits is None:
            below = sorted(net.below[number], key=lambda s: place[s.down])
            for segment, offset in zip(below, _evenly(len(below), block.width), strict=True):
                segment.start = offset


def _evenly(count: int, width: float) -> list[float]:
    pitch = min(PORT_PITCH, (width - 24) / max(1, count - 1))
    return [pitch * (number - (count - 1) / 2) for number in range(count)]
