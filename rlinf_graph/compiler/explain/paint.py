"""Lanes as characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from string import ascii_lowercase

from rlinf_graph.compiler.explain.report import Lane
from rlinf_graph.compiler.explain.segment import Segment

SHADES = "█▓░▒"
WEIGHTS, SWITCH, IDLE = "s", "~", " "


def symbols(lanes: Iterable[Lane]) -> dict[str, str]:
    """A character for each node's work: shades for the longest, then letters of their names."""
    totals: dict[str, float] = {}
    for lane in lanes:
        for segment in lane.segments:
            if segment.kind == "work":
                seconds = (segment.end_s - segment.start_s) * max(1, lane.count)
                totals[segment.node] = totals.get(segment.node, 0.0) + seconds
    ordered = sorted(totals, key=lambda name: (-totals[name], name))
    made = dict(zip(ordered, SHADES, strict=False))
    for name in ordered[len(SHADES) :]:
        taken = {WEIGHTS, *made.values()}
        letters = [c for c in (*name.lower(), *ascii_lowercase) if c.isascii() and c.isalpha()]
        made[name] = next((c for c in letters if c not in taken), "?")
    return made


def paint(
    segments: Sequence[Segment], seconds: float, columns: int, marks: Mapping[str, str]
) -> str:
    """One character a column: what takes most of the column's time, blank where that is nothing.

    Args:
        segments: of a lane, inside `seconds`.
        seconds: that the columns stand for together.
        columns: characters.
        marks: by node, for its work.
    """
    shares: list[dict[str, float]] = [{} for _ in range(columns)]
    width = seconds / columns if columns else 0.0
    for segment in segments:
        for column in _columns(segment, width, columns):
            start, end = column * width, (column + 1) * width
            part = min(segment.end_s, end) - max(segment.start_s, start)
            mark = mark_of(segment, marks)
            shares[column][mark] = shares[column].get(mark, 0.0) + max(0.0, part)
    return "".join(_most(share, width) for share in shares)


def mark_of(segment: Segment, marks: Mapping[str, str]) -> str:
    """The character of a segment."""
    special = {"weights": WEIGHTS, "switch": SWITCH}
    return special.get(segment.kind) or marks.get(segment.node, "?")


def _columns(segment: Segment, width: float, columns: int) -> range:
    if width <= 0:
        return range(0)
    return range(int(segment.start_s / width), min(columns, int(segment.end_s / width) + 1))


def _most(share: Mapping[str, float], width: float) -> str:
    idle = width - sum(share.values())
    best = max(share, key=lambda mark: share[mark], default=IDLE)
    return best if share and share[best] >= idle else IDLE
