"""From the events of a run to a report with the measured beside the estimated."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.explain.acceptance import acceptance_lines
from rlinf_graph.compiler.explain.build import explain
from rlinf_graph.compiler.explain.causes import Causes
from rlinf_graph.compiler.explain.measured import (
    SLOW,
    Age,
    Clock,
    Measured,
    MeasuredLane,
    Part,
    Run,
    SlowIteration,
)
from rlinf_graph.compiler.explain.measured_rows import measure_row, within
from rlinf_graph.compiler.explain.recorded import Recorded
from rlinf_graph.compiler.explain.report import Lane, Report, Row
from rlinf_graph.compiler.explain.segment import Kind
from rlinf_graph.compiler.explain.steady import KIND, Steady
from rlinf_graph.compiler.explain.waits import waits_of
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.timeline import Event

Sample = Mapping[str, Any]


def analyze(
    compiled: Compiled,
    events: Sequence[Event],
    iterations: int,
    *,
    samples: Iterable[Sample] = (),
    clock: Clock = "shared",
    memory: Mapping[int, float] | None = None,
    metrics: Iterable[Mapping[str, float]] = (),
) -> Report:
    """Say what a run took, beside what was expected, and what its devices waited for.

    Args:
        compiled: what was run.
        events: of all ranks in all iterations.
        iterations: how many were run, from iteration 0 on.
        samples: that were trained on; of each `node`, `iteration` and the `version` that drew it.
        clock: `own` where the ranks ran one after another, each by its own clock.
        memory: most bytes in use by device, where that was told.
        metrics: of each iteration.
    """
    estimated = explain(compiled)
    lag = max((sync.staleness for sync in compiled.plan.syncs.values()), default=0)
    recorded = Recorded(events, iterations, lag)
    rows = tuple(
        replace(row, measured=measure_row(compiled.graph, row, recorded)) for row in estimated.rows
    )
    steady = Steady(
        compiled.graph, compiled.cluster, compiled.plan, compiled.costs,
        events, iterations, recorded.period.median,
    )  # fmt: skip
    run = Run(
        iterations=iterations,
        warm_up_s=recorded.lengths[0] if iterations > 1 else None,
        period=recorded.period,
        ratio=recorded.period.median / estimated.seconds if estimated.seconds else 0.0,
        inside=bool(within(recorded.period.median, estimated.interval)),
        clock=clock,
        shown=(steady.iteration, steady.window[1] - steady.window[0]),
        lanes=_lanes(compiled, estimated, recorded, steady, memory or {}),
        slow=_slow(recorded, rows),
        ages=_ages(compiled.graph, samples),
        refill=tuple(acceptance_lines(compiled.graph, metrics)),
    )
    return replace(estimated, rows=rows, run=run)


def _lanes(
    compiled: Compiled,
    estimated: Report,
    recorded: Recorded,
    steady: Steady,
    memory: Mapping[int, float],
) -> tuple[MeasuredLane, ...]:
    causes = Causes(compiled.program, recorded.events)
    expected = {lane.where: lane for lane in estimated.lanes}
    made: list[MeasuredLane] = []
    for block, lane in zip(steady.blocks, steady.lanes, strict=False):
        if not any(device in recorded.by_device for device in block):
            continue
        start, end = recorded.window
        count = len(recorded.looked_at)
        devices = [recorded.by_device.get(device, []) for device in block]
        waits = waits_of(causes, devices, (start, end))
        made.append(
            MeasuredLane(
                where=lane.where,
                count=lane.count,
                seconds=(end - start) / count,
                estimated_s=estimated.window_s,
                parts=_parts(expected[lane.where], devices, (start, end), count),
                waits=tuple(replace(wait, seconds=wait.seconds / count) for wait in waits),
                segments=lane.segments,
                estimated_peak=expected[lane.where].peak,
                peak=max((memory[device] for device in block if device in memory), default=None),
            )
        )
    return tuple(made)


def _parts(
    expected: Lane, devices: Sequence[Sequence[Event]], window: tuple[float, float], count: int
) -> tuple[Part, ...]:
    """What a lane is busy with; a moment in which a device does two things counts once."""
    measured = defaultdict[tuple[str, Kind], float](float)
    for events in devices:
        until = window[0]
        for event in events:
            end = min(event.end, window[1])
            key = (event.group, KIND.get(event.kind, "work"))
            measured[key] += max(0.0, end - max(event.start, until)) / len(devices) / count
            until = max(until, end)
    planned = defaultdict[tuple[str, Kind], float](float)
    for segment in expected.segments:
        planned[segment.node, segment.kind] += segment.end_s - segment.start_s
    parts = [
        Part(node, kind, planned[node, kind], measured[node, kind])
        for node, kind in {**planned, **measured}
        if planned[node, kind] or measured[node, kind]
    ]
    return tuple(sorted(parts, key=lambda p: (-p.measured_s, p.node, p.kind)))


def _slow(recorded: Recorded, rows: Sequence[Row]) -> tuple[SlowIteration, ...]:
    """The node of an iteration is the one whose ranks were busy for most of the excess."""
    median = recorded.period.median
    numbers = [i for i in recorded.counted if recorded.lengths[i] > SLOW * median]
    return tuple(
        SlowIteration(i, recorded.lengths[i], *_excess(recorded, rows, i))
        for i in sorted(numbers, key=lambda i: -recorded.lengths[i])
    )


def _excess(recorded: Recorded, rows: Sequence[Row], iteration: int) -> tuple[str | None, float]:
    more: dict[str, float] = {}
    for row in rows:
        ranks = recorded.by_node.get(row.name, {}).get(iteration, {})
        measured: Measured | None = row.measured
        if not ranks or measured is None:
            continue
        busiest = max(sum(e.seconds for e in events) for events in ranks.values())
        usual = measured.busy.median if row.every == 1 else 0.0
        more[row.name] = busiest - usual
    worst = max(more, key=lambda name: more[name], default=None)
    excess = recorded.lengths[iteration] - recorded.period.median
    if worst is None or more[worst] < excess / 2:
        return None, excess
    return worst, more[worst]


def _ages(graph: Graph, samples: Iterable[Sample]) -> tuple[Age, ...]:
    """Ages of samples of trained models."""
    models = {node.name: node.models[0].model for node in graph.nodes if node.models}
    counts: Counter[tuple[str, int]] = Counter()
    for sample in samples:
        model = models.get(sample["node"])
        if model in graph.trainers():
            counts[str(model), sample["iteration"] - sample["version"]] += 1
    return tuple(Age(model, age, count) for (model, age), count in sorted(counts.items()))
