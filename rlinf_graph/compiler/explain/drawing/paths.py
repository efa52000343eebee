"""Lines through points, as SVG path data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rlinf_graph.compiler.explain.drawing.legs import Point

CORNER, STRAIGHT = 7.0, 0.05


def curve(points: Sequence[Point]) -> str:
    """Downwards: straight where points are one above the other, else from vertical to vertical."""
    parts = [f"M{_at(points[0])}"]
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (y + to_y) / 2
        if abs(x - to_x) < STRAIGHT:
            parts.append(f"L{_at((to_x, to_y))}")
        else:
            parts.append(f"C{_at((x, middle))} {_at((to_x, middle))} {_at((to_x, to_y))}")
    return "".join(parts)


def elbows(points: Sequence[Point]) -> str:
    """Straight pieces, with rounded corners between them."""
    parts = [f"M{_at(points[0])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(CORNER, _length(before, corner) / 2, _length(corner, after) / 2)
        into, out = _towards(corner, before, radius), _towards(corner, after, radius)
        parts.append(f"L{_at(into)}Q{_at(corner)} {_at(out)}")
    return "".join([*parts, f"L{_at(points[-1])}"])


def number(value: float) -> str:
    """With one decimal, or none."""
    shown = f"{value:.1f}".removesuffix(".0")
    return "0" if shown == "-0" else shown


def _at(point: Point) -> str:
    return f"{number(point[0])},{number(point[1])}"


def _length(a: Point, b: Point) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _towards(start: Point, end: Point, length: float) -> Point:
    """A point on the way along an axis."""
    whole = _length(start, end)
    share = length / whole if whole else 0.0
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
