"""A scope laid out: everything in it has coordinates, counted from its top left corner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlinf_graph.compiler.explain.drawing.crossings import order_rows
from rlinf_graph.compiler.explain.drawing.lanes import Lane, place_lanes
from rlinf_graph.compiler.explain.drawing.legs import (
    Channels,
    End,
    Leg,
    Point,
    item_vertices,
    touch,
)
from rlinf_graph.compiler.explain.drawing.metrics import text_width
from rlinf_graph.compiler.explain.drawing.net import (
    Block,
    Net,
    Weaver,
    fix_passages,
    spread_ports,
)
from rlinf_graph.compiler.explain.drawing.rows import end_at, stack_rows
from rlinf_graph.compiler.explain.drawing.sketch import Link, Scope
from rlinf_graph.compiler.explain.drawing.spread import spread

TITLE_SIZE, SUBTITLE_SIZE = 12.0, 10.5
PAD, BESIDE_TITLE = 16.0, 12.0


@dataclass
class Plate:
    """The inside of a scope.

    Attributes:
        scope: what was laid out.
        net: its vertices, with coordinates.
        bands: top and bottom of each row, between which its links are vertical.
        legs, lanes: feedback.
        title_at: left end of the title.
    """

    scope: Scope
    net: Net
    bands: list[Point]
    legs: list[Leg]
    lanes: list[Lane]
    width: float
    height: float
    title_at: float

    def block(self, margin: float) -> Block:
        """The whole as an item of the scope around it, with that much room for feedback."""
        ports = [(v.row, v.port, v.x - self.width / 2) for v in self.net.vertices if not v.item]
        entries = {port: x for row, port, x in ports if row == 0}
        exits = {port: x for row, port, x in ports if row == len(self.net.rows) - 1}
        return Block(self.width, self.height, entries, exits, margin)

    def sides(self) -> dict[End, float]:
        """Heights at which feedback crosses the frame."""
        return {leg.end: leg.level for leg in self.legs if not leg.home}

    def route(self, link: Link) -> list[Point]:
        """The points of a link: between them it is vertical, or bends from vertical to vertical."""
        segments, vertices = self.net.routes[link], self.net.vertices
        tail, head = vertices[segments[0].up], vertices[segments[-1].down]
        points = [(tail.x + segments[0].start, tail.y + tail.height)]
        for segment in segments:
            up, down = vertices[segment.up], vertices[segment.down]
            points.append((up.x + segment.start, self.bands[up.row][1]))
            points.append((down.x + segment.end, self.bands[down.row][0]))
        return [*points, (head.x + segments[-1].end, head.y)]

    def leg_points(self, leg: Leg) -> list[Point]:
        """From the item to the lane or the frame."""
        vertex = item_vertices(self.net)[leg.item]
        edge = vertex.x + self.net.blocks[leg.item].width / 2
        lanes = {lane.arc: lane.x for lane in self.lanes}
        return leg.points(edge, lanes[leg.end[0]] if leg.home else self.width)


def arrange(
    scope: Scope,
    blocks: Mapping[str, Block],
    legs: list[Leg],
    sides: Mapping[str, Mapping[End, float]],
    texts: Mapping[int, tuple[str, ...]],
    title: tuple[str, ...],
) -> Plate:
    """Lay a scope out.

    Args:
        scope: its items and links.
        blocks: sizes of the items.
        legs: feedback that runs here.
        sides: of items that are loops, where feedback crosses their frames.
        texts: of the arcs.
        title: of its frame, two lines; empty for the whole graph.
    """
    net = Weaver(scope, blocks).weave()
    fix_passages(net)
    order_rows(net)
    spread_ports(net)
    spread(net)
    pad = PAD if title else 0.0
    left = min(v.x - v.left for v in net.vertices)
    for vertex in net.vertices:
        vertex.x += pad - left
    bands = _heights(net, legs, sides, framed=bool(title))
    right = max(v.x + v.right for v in net.vertices)
    lanes = place_lanes(legs, texts, right)
    width = max([right, *(lane.text_left + lane.text_width for lane in lanes)]) + pad
    title_at = _title_place(net, title)
    if title:
        width = max(width, title_at + title_width(title) + pad)
    height = max([bands[-1][1], *(lane.text_top + lane.text_height + pad for lane in lanes)])
    end_at(net, bands, height)
    return Plate(scope, net, bands, legs, lanes, width, height, title_at)


def _heights(
    net: Net, legs: list[Leg], sides: Mapping[str, Mapping[End, float]], framed: bool
) -> list[Point]:
    touch(legs, net, sides)
    channels = Channels.of(legs, net)
    bands = stack_rows(net, channels, framed)
    items = item_vertices(net)
    for leg in legs:
        leg.side += items[leg.item].y
        leg.level = leg.side
    channels.set_levels(bands)
    return bands


def title_width(title: tuple[str, ...]) -> float:
    """Pixels of the wider line."""
    sizes = ((TITLE_SIZE, True), (SUBTITLE_SIZE, False))
    lines = zip(title, sizes, strict=False)
    return max((text_width(line, size, bold) for line, (size, bold) in lines), default=0.0)


def _title_place(net: Net, title: tuple[str, ...]) -> float:
    """The first free place between the passages of the frame's top, or behind the last."""
    need, start = title_width(title), PAD
    for x in [net.vertices[v].x for v in net.rows[0]]:
        if start + need + BESIDE_TITLE <= x:
            return start
        start = x + BESIDE_TITLE
    return start
