"""How high each row of a scope stands."""

from __future__ import annotations

from rlinf_graph.compiler.explain.drawing.legs import CHANNEL, Channels, Point
from rlinf_graph.compiler.explain.drawing.net import Net

TITLE_HEIGHT, FOOT = 40.0, 8.0
APPROACH = 12.0
NO_GAP, SMALL_GAP, LARGE_GAP, PER_PIXEL = 6.0, 12.0, 46.0, 0.12
"""Between rows: without links, and with links the further these move sideways the more."""


def stack_rows(net: Net, channels: Channels, framed: bool) -> list[Point]:
    """Set the `y` of every vertex.

    Returns:
        Top and bottom of each row, between which its links are vertical.
    """
    last = len(net.rows) - 1
    bands: list[Point] = [(0.0, TITLE_HEIGHT if framed else 0.0)]
    for number in range(1, len(net.rows)):
        row = [net.vertices[v] for v in net.rows[number]]
        top = bands[-1][1] + _gap(net, number)
        tallest = max((vertex.height for vertex in row), default=0.0)
        start = top
        if number % 2 == 0 and number < last:
            start += CHANNEL * len(channels.above[number]) + APPROACH
        for vertex in row:
            vertex.y = start
        below = CHANNEL * len(channels.below[number])
        bands.append((top, start + tallest + below))
    foot = FOOT if framed else 0.0
    bands[last] = (bands[last][0], bands[last][1] + foot)
    return bands


def end_at(net: Net, bands: list[Point], height: float) -> None:
    """Move the passages of the frame's bottom to where the frame ends."""
    bands[-1] = (bands[-1][0], height)
    for number in net.rows[-1]:
        net.vertices[number].y = height


def _gap(net: Net, number: int) -> float:
    segments = net.into_row(number)
    moves = [abs(net.vertices[s.up].x + s.start - net.vertices[s.down].x - s.end) for s in segments]
    if not moves:
        return NO_GAP
    return min(LARGE_GAP, SMALL_GAP + PER_PIXEL * max(moves))
