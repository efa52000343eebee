"""Where a measured iteration goes, beside an estimated one."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.compiler.explain.columns import align
from rlinf_graph.compiler.explain.lines import paragraph
from rlinf_graph.compiler.explain.measured import MeasuredLane, Part, Run, Wait
from rlinf_graph.compiler.explain.report import Report
from rlinf_graph.compiler.explain.units import Clock, gigabytes, percent

NEAR = 0.05
"""An estimate that is this near to the measurement is called right."""

TOLD = 0.01
"""Parts of an iteration that are worth a line, and differences worth a word."""

MOST = 3
KINDS = {"work": "", "weights": "weights for ", "switch": "load, offload "}


def verdict(report: Report, run: Run, clock: Clock, width: int) -> Iterator[str]:
    """Faster or slower than estimated, and what makes the difference on the busiest devices."""
    if not run.lanes or not report.seconds:
        return
    lane = max(run.lanes, key=lambda x: x.seconds - x.idle_s)
    more = run.period.median - report.seconds
    if abs(run.ratio - 1) < NEAR:
        head, text = "as estimated", f"within {percent(max(0.01, abs(run.ratio - 1)))}"
    else:
        head = "slower" if more > 0 else "faster"
        text = f"by {clock.text(abs(more))} than estimated"
        mean = run.period.mean - report.seconds
        if abs(mean - more) >= NEAR * report.seconds:
            text += f", in the mean by {_signed(mean, clock)}"
        where = "within" if run.inside else "outside"
        text += f", {where} its 80% interval ({clock.between(report.interval)})"
    changes = [
        (change, f"{_name(part)} {_signed(change, clock)}")
        for part in lane.parts
        for change in [part.measured_s - part.estimated_s]
    ]
    idle = lane.idle_s - lane.estimated_idle_s
    most = f" ({_reason(lane.waits[0])})" if lane.waits and idle > 0 else ""
    changes.append((idle, f"idle {_signed(idle, clock)}{most}"))
    told = sorted(changes, key=lambda c: -abs(c[0]))[:MOST]
    shown = [words for change, words in told if abs(change) >= TOLD * report.seconds]
    if shown:
        text += f"; on {lane.where}: {', '.join(shown)}"
    yield from paragraph(head, text, width)


def lane_lines(run: Run, clock: Clock, width: int) -> Iterator[str]:
    """A table for each lane: what it does, how long it is idle, and why."""
    if not run.lanes:
        return
    head = ["where an iteration goes (mean)", f"estimated {clock.unit}", f"measured {clock.unit}",
            "difference"]  # fmt: skip
    cells = [head]
    notes: dict[int, list[str]] = {}
    for lane in run.lanes:
        cells.append([lane.where, *_figures(lane.estimated_s, lane.seconds, clock)])
        shown, others = _worth(lane)
        cells += [[f"  {_name(p)}", *_figures(p.estimated_s, p.measured_s, clock)] for p in shown]
        if others is not None:
            cells.append(["  others", *_figures(*others, clock)])
        share = percent(lane.idle_s / lane.seconds) if lane.seconds else "0%"
        figures = _figures(lane.estimated_idle_s, lane.idle_s, clock)
        cells.append([f"  idle {share}", *figures])
        notes[len(cells) - 1] = list(_waits(lane, clock))
    for i, line in enumerate(align(cells, left=(0,), shrink=0, width=width)):
        yield line
        for note in notes.get(i, []):
            yield f"     {note}"
    if any("handing over" in note for made in notes.values() for note in made):
        yield " handing over: the inputs were there; they were sent or fetched, or a turn changed"
    yield from _memory(run, width)


def _memory(run: Run, width: int) -> Iterator[str]:
    """Most memory in use on a device of each lane, where it was measured."""
    rows = [
        [lane.where, gigabytes(lane.estimated_peak or 0.0), gigabytes(lane.peak)]
        for lane in run.lanes
        if lane.peak is not None
    ]
    if rows:
        head = ["most memory in use on a device", "estimated GB", "measured GB"]
        yield ""
        yield from align([head, *rows], left=(0,), shrink=0, width=width)


def _waits(lane: MeasuredLane, clock: Clock) -> Iterator[str]:
    """The reasons that make up most of the idle time, one a line."""
    least = TOLD / 2 * lane.seconds
    told = [wait for wait in lane.waits if wait.seconds >= least][: MOST + 1]
    for wait in told:
        yield f"{clock.number(wait.seconds)} {_reason(wait)}"
    rest = lane.idle_s - sum(wait.seconds for wait in told)
    if told and rest >= least:
        yield f"{clock.number(rest)} for other reasons"


def _reason(wait: Wait) -> str:
    match wait.kind:
        case "samples":
            return f"for samples of {wait.node}"
        case "weights":
            return f"for weights of {wait.node}"
        case "ranks":
            return f"for the slowest rank of {wait.node}"
        case "turn":
            return f"while {wait.node} has its turn"
        case "room":
            return f"for {wait.node} to take what is there"
        case "handover":
            return f"handing over to {wait.node}"
        case "idle":
            return "for no reason that is known"
        case "done":
            return "at the end of the run, when nothing more came"


def _worth(lane: MeasuredLane) -> tuple[list[Part], tuple[float, float] | None]:
    """Parts with a line of their own, and the sums of the others."""
    least = TOLD * lane.seconds
    shown = [p for p in lane.parts if max(p.measured_s, p.estimated_s) >= least]
    others = [p for p in lane.parts if p not in shown]
    if not others:
        return shown, None
    return shown, (sum(p.estimated_s for p in others), sum(p.measured_s for p in others))


def _name(part: Part) -> str:
    return f"{KINDS[part.kind]}{part.node}"


def _figures(estimated: float, measured: float, clock: Clock) -> list[str]:
    difference = _signed(measured - estimated, clock, unit=False)
    return [clock.number(estimated), clock.number(measured), difference]


def _signed(seconds: float, clock: Clock, unit: bool = True) -> str:
    size = clock.text(abs(seconds)) if unit else clock.number(abs(seconds))
    if size.startswith("<"):
        return clock.text(0) if unit else clock.number(0)
    return f"{'-' if seconds < 0 else '+'}{size}" if seconds else size
