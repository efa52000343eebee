"""The measured figures of a row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rlinf_graph.compiler.explain.measured import Measured, SlowRank
from rlinf_graph.compiler.explain.recorded import Ranks, Recorded, spread
from rlinf_graph.compiler.explain.report import Row
from rlinf_graph.compiler.explain.rows import delivered, own_events, sync_label
from rlinf_graph.compiler.explain.steady import KIND
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.plan import show_devices
from rlinf_graph.ir.timeline import Event

UNEVEN = 1.1
"""A rank that is busy this many times the mean of all ranks is told."""


def measure_row(graph: Graph, row: Row, recorded: Recorded) -> Measured | None:
    """What a row's node took; None where it never ran."""
    node = _node_of(graph, row)
    if node.role is Role.SYNC:
        return _measured(row, _deliveries(graph, node, recorded), recorded)
    own = {
        iteration: {rank: own_events(graph, node, events) for rank, events in ranks.items()}
        for iteration, ranks in recorded.by_node.get(node.name, {}).items()
    }
    return _measured(row, {i: [ranks] for i, ranks in own.items()}, recorded)


def _node_of(graph: Graph, row: Row) -> Node:
    labels = {sync_label(n) if n.role is Role.SYNC else n.name: n for n in graph.nodes}
    return labels[row.name]


def _deliveries(graph: Graph, sync: Node, recorded: Recorded) -> dict[int, list[Ranks]]:
    """By iteration, for each reader: events that take over what a sync delivers."""
    made: dict[int, list[Ranks]] = {}
    port = (sync.models[0].model, sync.models[0].served)
    for node in graph.readers(*port):
        for iteration, ranks in recorded.by_node.get(node.name, {}).items():
            taken = {rank: delivered(graph, node, e, port) for rank, e in ranks.items()}
            made.setdefault(iteration, []).append(taken)
    return made


def _measured(row: Row, done: dict[int, list[Ranks]], recorded: Recorded) -> Measured | None:
    """`done`: by iteration, for each worker group, the events of its ranks."""
    counted = [i for i in recorded.counted if i in done]
    chosen = counted or sorted(done)
    if not chosen:
        return None
    busy = spread([sum(map(_busy, done[i])) / _every(row) for i in chosen])
    first, last = _first_last([done[i] for i in chosen], [recorded.origins[i] for i in chosen])
    expected = row.estimate.busy_s
    return Measured(
        first_s=first,
        last_s=last,
        busy=busy,
        ratio=busy.median / expected if expected > 0 else None,
        ran=len(chosen),
        inside=within(busy.median, row.interval) if expected > 0 else None,
        warming=recorded.iterations > 1 and not counted,
        slowest=_slowest(row, [done[i][0] for i in counted]) if counted else None,
    )


def within(seconds: float, interval: tuple[float, float] | None) -> bool | None:
    """Whether a measurement lies within an interval; None where there is none."""
    return None if interval is None else interval[0] <= seconds <= interval[1]


def _every(row: Row) -> int:
    """Estimates are spread over the iterations in which nothing runs; those of a sync already."""
    return row.every if row.estimate.first_s is not None else 1


def _busy(ranks: Ranks) -> float:
    """Seconds that a rank is busy, the mean of all."""
    return statistics.fmean(sum(e.seconds for e in events) for events in ranks.values())


def _first_last(
    done: Sequence[list[Ranks]], origins: Sequence[float]
) -> tuple[float | None, float | None]:
    firsts, lasts = list[float](), list[float]()
    for groups, origin in zip(done, origins, strict=True):
        worked = [
            event
            for ranks in groups
            for events in ranks.values()
            for event in events
            if KIND.get(event.kind, "work") == "work"
        ]
        if worked:
            firsts.append(min(e.start for e in worked) - origin)
            lasts.append(max(e.end for e in worked) - origin)
    if not firsts:
        return None, None
    return statistics.median(firsts), statistics.median(lasts)


def _slowest(row: Row, done: Sequence[Ranks]) -> SlowRank | None:
    totals: dict[int, float] = {}
    places: dict[int, Event] = {}
    for ranks in done:
        for rank, events in ranks.items():
            totals[rank] = totals.get(rank, 0.0) + sum(e.seconds for e in events)
            if events:
                places[rank] = events[0]
    mean = statistics.fmean(totals.values())
    rank = max(totals, key=lambda r: totals[r])
    if row.estimate.first_s is None or row.folded or totals[rank] < UNEVEN * mean or not mean:
        return None
    kind = row.devices.split()[0]
    return SlowRank(rank, f"{kind} {show_devices(places[rank].devices)}", totals[rank] / mean)
