"""Why devices are idle: every gap, told by what the next event on the device waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rlinf_graph.compiler.explain.causes import Causes
from rlinf_graph.compiler.explain.measured import Wait, WaitKind
from rlinf_graph.ir.timeline import Event

FARTHEST = 100
"""Events that are followed back from one gap."""

Reason = tuple[WaitKind, str]
Span = tuple[Reason, float, float]


def waits_of(
    causes: Causes, lanes: Sequence[Sequence[Event]], window: tuple[float, float]
) -> tuple[Wait, ...]:
    """Seconds for each reason, the mean of all devices, longest first.

    Args:
        causes: of the whole run.
        lanes: the events of each device, in the order of their starts.
        window: that is looked at, in seconds of the run.
    """
    spans = [span for events in lanes for span in _spans(causes, events, window)]
    totals = [
        Wait(kind, node, sum(end - start for _reason, start, end in same) / len(lanes))
        for (kind, node), same in groupby(sorted(spans), key=lambda span: span[0])
    ]
    return tuple(sorted(totals, key=lambda w: (-w.seconds, w.kind, w.node)))


def blame(causes: Causes, event: Event, start: float) -> Iterator[Span]:
    """From `start` to the event, backwards: who was worked or waited for.

    What an event waited for may have waited itself, so a gap can have several reasons.
    """
    end, reason = event.start, None
    for _ in range(FARTHEST):
        if end <= start:
            return
        cause = causes.of(event)
        if cause is None:
            break
        ready = max(start, min(cause.event.end, end))
        yield ("handover", event.group), ready, end
        begin = max(start, min(cause.event.start, ready))
        if reason is None or cause.event.group != event.group:
            kind: WaitKind = "handover" if cause.kind == "order" else cause.kind
            reason = (kind, cause.event.group)
        yield reason, begin, ready
        event, end = cause.event, begin
    yield ("idle", ""), start, end


def _spans(causes: Causes, events: Sequence[Event], window: tuple[float, float]) -> Iterator[Span]:
    first, last = window
    for start, event in _gaps(events, first):
        if start >= last:
            return
        told: Iterable[Span] = [(("done", ""), start, last)]
        if event is not None:
            told = blame(causes, event, start)
        for reason, begin, end in told:
            if min(end, last) > begin:
                yield reason, begin, min(end, last)


def _gaps(events: Sequence[Event], first: float) -> Iterator[tuple[float, Event | None]]:
    """Where nothing runs: its beginning, and the event that ends it."""
    until = first
    for event in events:
        if event.start > until:
            yield until, event
        until = max(until, event.end)
    yield until, None
