"""The report of a run as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.compiler.explain.columns import (
    align,
    branches,
    cost_from,
    devices_text,
    legend_of,
    remark,
)
from rlinf_graph.compiler.explain.difference import lane_lines, verdict
from rlinf_graph.compiler.explain.lines import BOLD, RED, YELLOW, colored, paragraph, wrapped
from rlinf_graph.compiler.explain.measured import SLOW, Measured, Run
from rlinf_graph.compiler.explain.paint import SWITCH, WEIGHTS, paint, symbols
from rlinf_graph.compiler.explain.reasons import brief_names
from rlinf_graph.compiler.explain.report import Lane, Report, Row
from rlinf_graph.compiler.explain.steady import FOLD
from rlinf_graph.compiler.explain.text import assumption_lines
from rlinf_graph.compiler.explain.units import Clock, percent, rate

UNEVEN = 1.5
"""A node that takes this many times as long in one iteration as in another is told."""

WORTH = 0.05
"""If it takes this share of an iteration."""

MOST_SLOW = 3
OFF = 1.25
"""A node that takes this many times its estimate is shown in color."""


OUTSIDE = "!"
"""Behind the ratio of a node that was measured outside the interval of its estimate."""


def render_analysis(report: Report, width: int = 100, color: bool = False) -> str:
    """A report with a run in at most `width` columns, as far as its names allow.

    Args:
        report: of `analyze`.
        width: columns of the terminal.
        color: emphasize the title and what took much longer than estimated.

    Raises:
        ValueError: for a report without a run.
    """
    run = report.run
    if run is None:
        raise ValueError("the report has no run; analyze makes one")
    clock = Clock.for_iteration(max(report.seconds, run.period.median))
    sections = [
        [*_head(report, run, clock, color), *verdict(report, run, clock, width)],
        [*_table(report, run, clock, width, color), *_below_table(report, run, clock, width)],
        list(lane_lines(run, clock, width)),
        list(_timeline(report, run, clock, width)),
        [
            *_slow(run, clock, width),
            *_staleness(report, run, width, color),
            *run.refill,
            *assumption_lines(report, width),
            *_clock(run, width),
        ],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _head(report: Report, run: Run, clock: Clock, color: bool) -> Iterator[str]:
    period = run.period
    span = f" ({clock.number(period.low)}..{clock.number(period.high)})" * (run.iterations > 2)
    title = [
        report.pipeline,
        f"measured {clock.text(period.median)}{span} per iteration, "
        f"estimated {clock.text(report.seconds)} (× {run.ratio:.2f})",
        f"{rate(report.samples / period.median if period.median else 0.0)} samples/s",
    ]
    yield colored(" · ".join(title), BOLD, color)
    counted = f"{run.iterations:,} iterations"
    if run.warm_up_s is None:
        counted = "one iteration, which warms up"
    else:
        counted += f", the first ({clock.text(run.warm_up_s)}) not counted"
    layout = "" if report.mode in ("collocated", "single") else f" {report.layout}"
    yield " · ".join([report.cluster, f"mode: {report.mode}{layout}", counted])


def _table(report: Report, run: Run, clock: Clock, width: int, color: bool) -> Iterator[str]:
    head = ["#", "node", "devices", f"first..last {clock.unit}", "estimated", "measured", "ratio",
            "cost from"]  # fmt: skip
    cells = [head, *(_cells(report, row, run, clock) for row in report.rows)]
    first, *lines = align(cells, left=(1, 2, 7), shrink=1, width=width)
    yield colored(first, BOLD, color)
    for row, line in zip(report.rows, lines, strict=True):
        yield colored(line, tone := _tone(row, run), color and bool(tone))


def _cells(report: Report, row: Row, run: Run, clock: Clock) -> list[str]:
    name = branches(report.rows, row) + row.name + remark(row)
    found, estimate = row.measured, row.estimate
    span, measured, ratio = "-", "-", "-"
    estimated = clock.number(estimate.busy_s)
    if found is not None:
        measured = clock.number(found.busy.median) + "*" * found.warming
        ratio = f"{found.ratio:.2f}" if found.ratio is not None else "-"
        ratio += OUTSIDE * _outside(row)
        span = "boundary"
        if found.first_s is not None and found.last_s is not None:
            span = f"{clock.number(found.first_s)}..{clock.number(found.last_s)}"
        if row.folded and found.busy.median < FOLD * run.period.median:
            span, estimated, measured, ratio = "-", "(<1%,", "folded)", "-"
    elif row.folded:
        estimated, measured = "(<1%)", "-"
    return [str(row.number), name, devices_text(report, row), span, estimated, measured, ratio,
            cost_from(row)]  # fmt: skip


def _outside(row: Row) -> bool:
    """Whether a row has been measured, and not within its interval."""
    found = row.measured
    return found is not None and found.inside is False and not found.warming


def _tone(row: Row, run: Run) -> str:
    found = row.measured
    if found is None or found.ratio is None or found.busy.median < WORTH * run.period.median:
        return ""
    return RED if found.ratio >= OFF else YELLOW if found.ratio <= 1 / OFF else ""


def _below_table(report: Report, run: Run, clock: Clock, width: int) -> Iterator[str]:
    for row in report.rows:
        if row.measured is not None and (text := _uneven(row.measured, run, clock)):
            yield from paragraph(f" {row.number} {row.name}:", text, width, indent=4)
    count = run.iterations - (run.warm_up_s is not None)
    legend = [
        f"estimated, measured: {clock.unit} of an iteration in which a device is busy with a node",
        f"measured: the median of {count:,}" if count > 1 else "measured: in one",
        *[f"in brackets: {run.period.span}"] * (count > 1),
        "first..last: measured, from beginning to end of a node's work for one iteration",
    ]
    if any(row.measured and row.measured.warming for row in report.rows):
        legend.append("*: ran in the first iteration only")
    if any(map(_outside, report.rows)):
        legend.append(f"{OUTSIDE}: off by more than ±")
    if any(row.measured is None for row in report.rows):
        legend.append("-: did not run")
    yield from wrapped([*legend, *legend_of(report)], width)


def _uneven(found: Measured, run: Run, clock: Clock) -> str:
    if found.busy.median < WORTH * run.period.median:
        return ""
    said: list[str] = []
    busy, slowest = found.busy, found.slowest
    if found.ran > 1 and busy.high >= UNEVEN * busy.low:
        said.append(f"{busy.span} {clock.number(busy.low)}..{clock.text(busy.high)}")
    if slowest is not None:
        said.append(
            f"rank {slowest.rank} ({slowest.devices}) is busy {slowest.ratio:.2f} × the mean of "
            "all ranks"
        )
    return ", ".join(said)


def _timeline(report: Report, run: Run, clock: Clock, width: int) -> Iterator[str]:
    names = brief_names(row.name for row in report.rows)
    number, seconds = run.shown
    lanes = {lane.where: lane for lane in report.lanes if lane.count}
    drawn = [
        (f"{lane.where} {kind}", Lane(lane.where, lane.count, 0.0, segments), length)
        for lane in run.lanes
        for kind, segments, length in (
            ("estimated", lanes[lane.where].segments, report.window_s),
            ("measured", lane.segments, seconds),
        )
    ]
    if not drawn:
        return
    longest = max(report.window_s, seconds)
    label = max(len(name) for name, _lane, _length in drawn)
    columns = max(20, width - label - 5)
    marks = symbols(lane for _name, lane, _length in drawn)
    kinds = {segment.kind for _name, lane, _length in drawn for segment in lane.segments}
    yield (
        f" an estimated iteration and iteration {number}, one column = "
        f"{clock.text(longest / columns)}"
    )
    legend = [f"{mark} {names.get(name, name)}" for name, mark in marks.items()]
    legend += [f"{WEIGHTS} weights"] * ("weights" in kinds)
    legend += [f"{SWITCH} load, offload"] * ("switch" in kinds)
    yield from wrapped(legend, width)
    for name, lane, length in drawn:
        own = max(1, round(columns * length / longest)) if longest else columns
        yield f" {name.ljust(label)} |{paint(lane.segments, length, own, marks)}|"


def _slow(run: Run, clock: Clock, width: int) -> Iterator[str]:
    for i, slow in enumerate(run.slow[:MOST_SLOW]):
        times = slow.seconds / run.period.median
        why = f"{slow.node} is busy {clock.text(slow.more_s)} longer" if slow.node else "waiting"
        text = f"iteration {slow.iteration}: {clock.text(slow.seconds)}, {times:.1f} × the median"
        yield from paragraph("" if i else "slow", f"{text} ({why})", width)
    if (more := len(run.slow) - MOST_SLOW) > 0:
        yield from paragraph("", f"and {more:,} more iterations above {SLOW} × the median", width)


def _staleness(report: Report, run: Run, width: int, color: bool) -> Iterator[str]:
    head = "staleness"
    for lag in report.staleness:
        ages = [(age.age, age.samples) for age in run.ages if age.model == lag.model]
        if not ages:
            continue
        total, oldest = sum(count for _age, count in ages), max(age for age, _count in ages)
        shares = ", ".join(
            f"{percent(count / total)} at {age}" if len(ages) > 1 else f"all at {age}"
            for age, count in ages
        )
        over = sum(count for age, count in ages if age > lag.limit)
        bound = f"{over:,} older than the limit of {lag.limit}" if over else (
            f"oldest {oldest}, limit {lag.limit}"
        )  # fmt: skip
        text = f"{lag.model}: {total:,} samples, {shares}; {bound}"
        for line in paragraph(head, text, width):
            yield colored(line, RED, color and bool(over))
        head = ""


def _clock(run: Run, width: int) -> Iterator[str]:
    if run.clock == "own":
        text = (
            "each rank's own: it stands still while others work, so the times are those of ranks "
            "side by side, though this run did their work one after another"
        )
        yield from paragraph("clock", text, width)
