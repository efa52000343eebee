"""Where feedback runs upwards: lanes to the right of all else in a scope, with their text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlinf_graph.compiler.explain.drawing.legs import Leg
from rlinf_graph.compiler.explain.drawing.metrics import text_width

BEFORE, BESIDE, AFTER = 12.0, 6.0, 16.0
REMARK_SIZE, REMARK_LINE, CLEAR = 10.5, 13.0, 5.0


@dataclass
class Lane:
    """The vertical piece of an arc, from `top` to `bottom`, with its text to the right."""

    arc: int
    lines: tuple[str, ...]
    top: float
    bottom: float
    x: float = 0.0
    text_top: float = 0.0

    @property
    def text_left(self) -> float:
        """Pixels."""
        return self.x + BESIDE

    @property
    def text_width(self) -> float:
        """Pixels."""
        return max(text_width(line, REMARK_SIZE, bold=True) for line in self.lines)

    @property
    def text_height(self) -> float:
        """Pixels."""
        return REMARK_LINE * len(self.lines)

    @property
    def extent(self) -> tuple[float, float]:
        """The part of a column that it takes."""
        middle, half = (self.top + self.bottom) / 2, self.text_height / 2 + CLEAR
        return min(self.top, middle - half), max(self.bottom, middle + half)


def place_lanes(legs: list[Leg], texts: Mapping[int, tuple[str, ...]], left: float) -> list[Lane]:
    """The lanes of the arcs at home in a scope, the shortest nearest to the items.

    Args:
        legs: with their levels.
        texts: of the arcs.
        left: where the first column may begin.
    """
    levels: dict[int, list[float]] = {}
    for leg in legs:
        if leg.home:
            levels.setdefault(leg.end[0], []).append(leg.level)
    lanes = [Lane(arc, texts[arc], min(ys), max(ys)) for arc, ys in levels.items()]
    lanes.sort(key=lambda lane: (lane.bottom - lane.top, lane.arc))
    x = left + BEFORE
    for column in _columns(lanes):
        for lane in column:
            lane.x = x
        x += BESIDE + max(lane.text_width for lane in column) + AFTER
    xs = {lane.arc: lane.x for lane in lanes}
    for lane in lanes:
        passing = [leg.level for leg in legs if not leg.home or xs[leg.end[0]] > lane.x]
        _place_text(lane, passing)
    return lanes


def _columns(lanes: list[Lane]) -> list[list[Lane]]:
    """Lanes that do not meet share a column."""
    columns: list[list[Lane]] = []
    for lane in lanes:
        free = (column for column in columns if not any(_meet(lane, other) for other in column))
        column = next(free, None)
        if column is None:
            columns.append([lane])
        else:
            column.append(lane)
    return columns


def _meet(a: Lane, b: Lane) -> bool:
    return a.extent[0] < b.extent[1] and b.extent[0] < a.extent[1]


def _place_text(lane: Lane, passing: list[float]) -> None:
    """Nearest to the middle where no leg passes; else where the nearest one is farthest."""
    low, high = lane.extent
    middle, half = (lane.top + lane.bottom) / 2, lane.text_height / 2
    reach = max(0, int((high - low) / 2 - half))

    def free(shift: int) -> float:
        return min([CLEAR, *(abs(middle + shift - y) - half for y in passing)])

    best = max(range(-reach, reach + 1), key=lambda shift: (free(shift), -abs(shift), shift))
    lane.text_top = max(0.0, middle + best - half)
