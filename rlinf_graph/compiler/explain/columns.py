"""The table of nodes as text."""

from __future__ import annotations

from collections.abc import Sequence

from rlinf_graph.compiler.explain.report import Memory, Report, Row
from rlinf_graph.compiler.explain.units import Clock, gigabytes, off

PER = {"gpu": "GPU", "cpu": "core", "device": "device"}
GAP = "  "
LEAST = 28
"""Characters that a node's name keeps where the width is too small."""

LONGEST = 13
"""Characters of a list of devices, before their number stands for it."""


ORIGINS = {
    "roofline": "closed form, its constants fitted elsewhere",
    "kernel": "from measured times of the engine's kernels",
}
"""Of figures that nobody declared and no profile has."""

BARRIER = " ━"
"""Behind the name of a node that waits for the whole batch."""


def table_lines(report: Report, clock: Clock, width: int) -> list[str]:
    """Head and one line for each row."""
    head = ["#", "node", "devices", "parallel", "first..last", f"busy {clock.unit}",
            f"GB/{per_device(report)}", "cost from"]  # fmt: skip
    cells = [head, *(_cells(report, row, clock) for row in report.rows)]
    return align(cells, left=(1, 2, 3, 7), shrink=1, width=width)


def align(
    cells: Sequence[Sequence[str]], *, left: Sequence[int], shrink: int, width: int
) -> list[str]:
    """Columns of equal width, all but `left` aligned right; column `shrink` is cut to fit."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    over = 1 + sum(widths) + len(GAP) * (len(widths) - 1) - width
    widths[shrink] = max(min(LEAST, widths[shrink]), widths[shrink] - max(0, over))
    lines: list[str] = []
    for row in cells:
        parts = [
            cut(text, size).ljust(size) if i in left else text.rjust(size)
            for i, (text, size) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " + GAP.join(parts)).rstrip())
    return lines


def cut(text: str, width: int) -> str:
    """At most `width` characters."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _cells(report: Report, row: Row, clock: Clock) -> list[str]:
    busy = clock.number(row.estimate.busy_s)
    span = _span(row, clock)
    if row.folded:
        span, busy = "(<1%,", "folded)"
    name = branches(report.rows, row) + row.name + remark(row)
    memory = _memory(row.memory)
    devices = devices_text(report, row)
    return [str(row.number), name, devices, row.parallel, span, busy, memory,
            cost_from(row)]  # fmt: skip


def devices_text(report: Report, row: Row) -> str:
    """The devices of a row, or how many they are."""
    short = len(row.devices) <= LONGEST
    return row.devices if short else f"{row.count:,} {per_device(report)}s"


def per_device(report: Report) -> str:
    """What one device is called."""
    return PER.get(report.device_kind, report.device_kind)


def origin(text: str) -> str:
    """One word for where a figure comes from."""
    return {"declared default": "assumed", "measured kernel": "kernel"}.get(text, text)


def cost_from(row: Row) -> str:
    """Where a row's seconds come from, and how far off they may be."""
    return origin(row.origin) if row.width is None else f"{origin(row.origin)} {off(row.width)}"


def legend_of(report: Report) -> list[str]:
    """What the column `cost from` means, as far as it occurs."""
    known = {origin(row.origin) for row in report.rows}
    legend = [f"{word}: {text}" for word, text in ORIGINS.items() if word in known]
    if report.profile:
        legend.append(f"profiled: {report.profile}")
    if any(row.width is not None for row in report.rows):
        legend.append("±: four in five such costs are off by less")
    return legend


def remark(row: Row) -> str:
    """Behind a name: how often the node runs, and from where else it takes."""
    every = f", every {row.every}" if row.every > 1 else ""
    if row.steps is not None:
        every = f" × {row.steps}"
    takes = f" ← {', '.join(map(str, row.takes))}" if row.takes else ""
    return every + takes + BARRIER * row.barrier


def _span(row: Row, clock: Clock) -> str:
    first, last = row.estimate.first_s, row.estimate.last_s
    if first is None or last is None:
        delivered = row.estimate.part("weights") == row.estimate.busy_s and row.memory is None
        return "boundary" if delivered else "-"
    return f"{clock.number(first)}..{clock.number(last)}"


def _memory(memory: Memory | None) -> str:
    if memory is None:
        return "-"
    sign = "" if memory.first else "+"
    return f"{sign}{gigabytes(memory.needed)}/{gigabytes(memory.capacity)}"


def branches(rows: Sequence[Row], row: Row) -> str:
    """The lines of the tree left of a name."""
    if row.parent is None:
        return ""
    by_number = {r.number: r for r in rows}
    text = "├─ " if _has_later_sibling(rows, row) else "└─ "
    above = by_number[row.parent]
    while above.parent is not None:
        text = ("│  " if _has_later_sibling(rows, above) else "   ") + text
        above = by_number[above.parent]
    return text


def _has_later_sibling(rows: Sequence[Row], row: Row) -> bool:
    return any(r.parent == row.parent and r.number > row.number for r in rows)
