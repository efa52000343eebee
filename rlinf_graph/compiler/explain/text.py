"""The report as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from math import inf

from rlinf_graph.compiler.explain.columns import align, legend_of, per_device, table_lines
from rlinf_graph.compiler.explain.lines import BOLD, RED, YELLOW, colored, paragraph, wrapped
from rlinf_graph.compiler.explain.paint import SWITCH, WEIGHTS, paint, symbols
from rlinf_graph.compiler.explain.reasons import (
    SAME,
    TIE,
    Words,
    assumption_text,
    brief_names,
    engines_text,
    search_text,
    tie_text,
    warnings,
)
from rlinf_graph.compiler.explain.report import Lane, Rejected, Report
from rlinf_graph.compiler.explain.units import Clock, gigabytes, percent, rate


def render_text(report: Report, width: int = 100, color: bool = False) -> str:
    """The report in at most `width` columns, as far as its names allow.

    Args:
        report: of `explain`.
        width: columns of the terminal.
        color: emphasize the title and the rows that take most of the iteration.
    """
    clock = Clock.for_iteration(report.seconds)
    words = Words(clock, brief_names(row.name for row in report.rows))
    sections = [
        [*_head(report, clock, color), *_notices(report, width, color)],
        [*_table(report, clock, width, color), *_below_table(report, words, width)],
        list(_timeline(report, words, width)),
        [
            *paragraph("bottleneck", words.bottleneck(report.bottleneck), width),
            *_choice(report, words, width),
            *assumption_lines(report, width),
        ],
        list(_rejected(report, words, width)),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _head(report: Report, clock: Clock, color: bool) -> Iterator[str]:
    lags = [
        f"staleness {s.staleness} (limit {s.limit})"
        + (f" of {s.model}" if len(report.staleness) > 1 else "")
        for s in report.staleness
    ]
    title = [
        report.pipeline,
        f"{clock.text(report.seconds)} per iteration (80%: {clock.between(report.interval)})",
        f"{rate(report.samples_per_s)} samples/s",
        *_distinct(lags),
    ]
    yield colored(" · ".join(title), BOLD, color)
    place = [report.cluster, f"mode: {report.mode}"]
    if report.mode not in ("collocated", "single"):
        place[1] += f" {report.layout}"
    if report.stream:
        stream = report.stream
        plural = "s" if stream.prompts > 1 else ""
        place.append(f"{stream.chunks} micro-batches of {stream.prompts:,} prompt{plural}")
    if unused := sum(lane.count for lane in report.lanes if not lane.segments):
        place.append(f"{unused:,} {per_device(report)}{'s' * (unused > 1)} unused")
    yield " · ".join(place)


def _distinct(lags: list[str]) -> list[str]:
    """One remark where all models lag alike."""
    plain = {lag.split(" of ")[0] for lag in lags}
    return sorted(plain) if len(plain) == 1 else lags


def _notices(report: Report, width: int, color: bool) -> Iterator[str]:
    for text in warnings(report):
        for line in paragraph("warning", text, width):
            yield colored(line, RED, color)


def _table(report: Report, clock: Clock, width: int, color: bool) -> Iterator[str]:
    head, *lines = table_lines(report, clock, width)
    yield colored(head, BOLD, color)
    for row, line in zip(report.rows, lines, strict=True):
        share = row.estimate.busy_s / report.seconds if report.seconds else 0.0
        tone = RED if share >= 0.5 else YELLOW if share >= 0.2 else ""
        yield colored(line, tone, color and bool(tone))


def _below_table(report: Report, words: Words, width: int) -> Iterator[str]:
    for edge in report.feedback:
        if not edge.targets:
            yield f" feedback: {edge.source} ⇢ -   {edge.model}: nobody reads what is delivered"
            continue
        to = ", ".join(map(str, edge.targets))
        every = f", delivered every {edge.every}" if edge.every > 1 else ""
        late = f"staleness ≤ {edge.limit}{every}"
        yield f" feedback: {edge.source} ⇢ {to}   {edge.model}, {late}"
        if edge.interrupts:
            cut = ", ".join(map(str, edge.interrupts))
            again = f"{words.clock.text(edge.again_s)} to read again what was said"
            yield f" {edge.source} interrupts {cut} while it generates: {again}"
    for kept in report.carried:
        yield f" carried:  {kept.source} ⇢ {kept.target}   {kept.type}, to the next iteration"
    if text := engines_text(report):
        yield from paragraph(" engines: ", text, width, indent=4)
    for row in report.rows:
        if text := words.settings(row):
            yield from paragraph(f" {row.number} {row.name}:", text, width, indent=4)
    legend = ["first..last: from beginning to end of a node's work for one iteration"]
    legend += ["← n: takes from row n, too"] * any(row.takes for row in report.rows)
    legend += ["━: waits for the whole batch"] * any(row.barrier for row in report.rows)
    yield from wrapped([*legend, *legend_of(report)], width)


def _timeline(report: Report, words: Words, width: int) -> Iterator[str]:
    clock = words.clock
    labels = [_label(lane, words) for lane in report.lanes]
    label = max(map(len, labels))
    tails = [_tail(lane, report) for lane in report.lanes]
    columns = max(20, width - label - 4 - max(len(tail) for tail in tails) - 1)
    column = clock.text(report.window_s / columns)
    if clock.number(report.window_s) != clock.number(report.seconds):
        yield f" iterations differ: {clock.text(report.window_s)} in the one shown"
    marks = symbols(report.lanes)
    kinds = {segment.kind for lane in report.lanes for segment in lane.segments}
    legend = [f"{mark} {words.names.get(name, name)}" for name, mark in marks.items()]
    legend += [f"{WEIGHTS} weights"] * ("weights" in kinds)
    legend += [f"{SWITCH} load, offload"] * ("switch" in kinds)
    yield f" one steady-state iteration, one column = {column}"
    yield from wrapped(legend, width)
    for lane, name, tail in zip(report.lanes, labels, tails, strict=True):
        drawn = paint(lane.segments, report.window_s, columns, marks)
        yield f" {name.ljust(label)} |{drawn}| {tail}"


def _label(lane: Lane, words: Words) -> str:
    """The host has a lane for each of its nodes."""
    if lane.count or not lane.segments:
        return lane.where
    name = lane.segments[0].node
    return f"{lane.where} {words.names.get(name, name)}"


def _tail(lane: Lane, report: Report) -> str:
    if lane.count and not lane.segments:
        return "unused"
    busy = f"{percent(lane.busy_s / report.window_s if report.window_s else 0.0):>4} busy"
    if lane.peak is None or lane.capacity is None:
        return busy
    return f"{busy}, {gigabytes(lane.peak)}/{gigabytes(lane.capacity)} GB"


def assumption_lines(report: Report, width: int) -> Iterator[str]:
    """What nobody declared or measured; equal ones in one line."""
    by_text: dict[str, list[str]] = {}
    for made in report.assumptions:
        by_text.setdefault(assumption_text(made), []).append(made.node)
    for i, (text, nodes) in enumerate(by_text.items()):
        head = "assumed" if i == 0 else ""
        yield from paragraph(head, f"{', '.join(nodes)}: {text}", width)


def _choice(report: Report, words: Words, width: int) -> Iterator[str]:
    if report.given:
        yield from paragraph("pinned", words.given(report.given, report.seconds), width)
    if report.margins:
        yield from paragraph("sensitive", words.margins(report.margins), width)


def _rejected(report: Report, words: Words, width: int) -> Iterator[str]:
    if shown := list(_worth_telling(report)):
        head = ["rejected (best simulated of each kind)", words.clock.unit, "vs best", "why"]
        cells = [head, *(_alternative(report, other, words) for other in shown)]
        if ties := any(TIE in row[2] for row in cells):
            cells = [head, *([*row[:2], _aligned(row[2]), row[3]] for row in cells[1:])]
        *_, last = zip(*cells, strict=True)
        first = align([row[:3] for row in cells], left=(0,), shrink=0, width=width)
        margin = max(len(line) for line in first) + 3
        for line, text in zip(first, last, strict=True):
            wrapped = textwrap.wrap(text, max(24, width - margin)) or [""]
            yield (line[1:] if text == "why" else line).ljust(margin) + wrapped[0]
            yield from (" " * margin + more for more in wrapped[1:])
        if ties:
            yield from paragraph(" ", tie_text(report), width, indent=2)
    if report.search:
        yield from paragraph(" ", search_text(report.search), width, indent=2)


def _aligned(difference: str) -> str:
    """The sign of a tie stands behind the column, not in it."""
    return difference if difference.endswith(TIE) else difference + " " * len(TIE)


def _worth_telling(report: Report) -> Iterator[Rejected]:
    """Without plans that more staleness leaves as they are, and what some layout makes fit."""
    feasible = {report.mode, *(r.mode for r in report.rejected if r.seconds is not None)}
    ordered = sorted(report.rejected, key=lambda r: (r.seconds or inf, r.staleness or 0))
    seen: set[tuple[str, str, float]] = set()
    for other in ordered:
        if other.seconds is None:
            if other.mode not in feasible:
                yield other
            continue
        key = (other.mode, other.layout, float(f"{other.seconds:.6g}"))
        if key not in seen:
            seen.add(key)
            yield other


def _alternative(report: Report, other: Rejected, words: Words) -> list[str]:
    layout = "" if other.mode in ("collocated", "single") else f" {other.layout}"
    lag = "" if other.staleness is None else f", staleness {other.staleness}"
    name, reason = f" {other.mode}{layout}{lag}", words.why(other, report.seconds)
    if other.seconds is None:
        return [name, "-", "-", reason]
    more = other.seconds / report.seconds - 1
    shown = "same" if abs(more) < SAME else f"{100 * more:+.1f}%" + TIE * other.tie
    return [name, words.clock.number(other.seconds), shown, reason]
