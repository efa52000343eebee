"""Colours, sizes and words that the picture and its legend share."""

from __future__ import annotations

from rlinf_graph.compiler.explain.drawing.feedback import ArcKind
from rlinf_graph.compiler.explain.drawing.words import Kind

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
PAPER, INK, GREY, LINE, BAR = "#ffffff", "#1f2328", "#59636e", "#75808d", "#24292f"
FRAMES = ("#ffffff", "#f5f7fa", "#e9edf3", "#dde3ec")
"""Behind what stands in no loop, in one, in two, and in more."""

NODES: dict[Kind, tuple[str, str, str]] = {
    "source": ("#e4edfb", "#5b83c4", "source"),
    "device": ("#dcf2e3", "#3c8f5d", "on devices"),
    "host": ("#f0f0f0", "#8c8c8c", "on the host"),
    "state": ("#d9f1f2", "#2e8792", "state"),
    "train": ("#fde6d4", "#d2702a", "train"),
    "evaluate": ("#fbf1c9", "#b8951d", "evaluate"),
    "sync": ("#efe4f8", "#8250b0", "sync"),
}
"""Fill, border, and what the legend calls it."""

ARCS: dict[ArcKind, tuple[str, str]] = {
    "weights": ("#8250b0", "weights, delivered by sync"),
    "trained": ("#d2702a", "weights, as trained"),
    "state": ("#2e8792", "carried to the next iteration"),
    "step": ("#3f6fb5", "carried to the next step"),
}
DASHES: dict[ArcKind, str] = {
    "weights": "6 4",
    "trained": "6 4",
    "state": "6 4",
    "step": "2 3",
}
BARRIER_TEXT = "barrier: waits for the whole batch"
BAR_HEIGHT = 5.0


def frame_fill(depth: int) -> str:
    """Behind what is in so many loops."""
    return FRAMES[min(depth, len(FRAMES) - 1)]
