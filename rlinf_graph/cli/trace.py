"""The timeline of a run for Perfetto and chrome://tracing.

The form is the Trace Event Format: a process for each set of devices that host the same nodes, a
thread for each rank of a node, and an arrow from an event to the one that waited for what it gave.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.explain.causes import Causes
from rlinf_graph.compiler.explain.steady import device_blocks
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.plan import show_devices
from rlinf_graph.ir.timeline import Event

MICROSECONDS = 1e6
ARROWS = ("samples", "weights")

Record = dict[str, Any]


def write_trace(path: Path, compiled: Compiled, events: Sequence[Event]) -> None:
    """Write `trace.json`.

    Raises:
        CompileError: RG0004, when the file cannot be written.
    """
    try:
        with path.open("w") as file:
            json.dump(trace(compiled, events), file)
    except OSError as error:
        raise fail("RG0004", f"cannot write {path}: {error.strerror}") from None


def trace(compiled: Compiled, events: Sequence[Event]) -> Record:
    """The events as one JSON object.

    Args:
        compiled: what was run.
        events: of all ranks; seconds since the run began.
    """
    threads = _Threads.of(compiled, events)
    records = [*threads.names(), *(threads.slice(event) for event in events)]
    records += _arrows(threads, Causes(compiled.program, events), events)
    return {
        "displayTimeUnit": "ms",
        "otherData": {"pipeline": compiled.graph.name, "cluster": compiled.cluster.summary()},
        "traceEvents": records,
    }


@dataclass(frozen=True)
class _Threads:
    """Where events are drawn.

    Attributes:
        processes: names, in the order of the devices; the host is the last.
        places: (process, thread) of each rank of a node.
        labels: of each rank of a node.
    """

    processes: list[str]
    places: dict[tuple[str, int], tuple[int, int]]
    labels: dict[tuple[str, int], str]

    @classmethod
    def of(cls, compiled: Compiled, events: Sequence[Event]) -> _Threads:
        blocks = device_blocks(compiled.plan, compiled.cluster)
        kinds = [compiled.cluster.group_of(block[0]).device.kind for block in blocks]
        names = [f"{k} {show_devices(b)}" for k, b in zip(kinds, blocks, strict=True)]
        process_of = {device: i for i, block in enumerate(blocks) for device in block}
        order = {group.name: i for i, group in enumerate(compiled.program.groups)}
        devices = {(event.group, event.at.rank): event.devices for event in events}
        places: dict[tuple[str, int], tuple[int, int]] = {}
        labels: dict[tuple[str, int], str] = {}
        for number, key in enumerate(sorted(devices, key=lambda k: (order[k[0]], k[1])), start=1):
            own = devices[key]
            process = process_of[own[0]] if own else len(blocks)
            places[key] = process, number
            where = f" · {kinds[process]} {show_devices(own)}" if own else ""
            labels[key] = f"{key[0]} · rank {key[1]}{where}"
        return cls([*names, "host"], places, labels)

    def names(self) -> Iterator[Record]:
        """Names and order of processes and threads."""
        used = {process for process, _thread in self.places.values()}
        for process, name in enumerate(self.processes):
            if process in used:
                yield _named("process_name", process, 0, name=name)
                yield _named("process_sort_index", process, 0, sort_index=process)
        for key, (process, thread) in self.places.items():
            yield _named("thread_name", process, thread, name=self.labels[key])
            yield _named("thread_sort_index", process, thread, sort_index=thread)

    def slice(self, event: Event) -> Record:
        """An event with its beginning and duration."""
        name = event.group if event.kind == "run" else f"{event.group}: {event.kind}"
        return {
            "ph": "X", "name": name, "cat": event.kind, **self.place(event),
            "ts": event.start * MICROSECONDS, "dur": event.seconds * MICROSECONDS,
            "args": asdict(event.at) | {"devices": show_devices(event.devices)},
        }  # fmt: skip

    def place(self, event: Event) -> dict[str, int]:
        process, thread = self.places[event.group, event.at.rank]
        return {"pid": process, "tid": thread}


def _arrows(threads: _Threads, causes: Causes, events: Sequence[Event]) -> Iterator[Record]:
    """From an event to one that could begin only then."""
    for number, event in enumerate(events):
        cause = causes.of(event)
        if cause is None or cause.kind not in ARROWS:
            continue
        common: Record = {"name": cause.kind, "cat": "waits", "id": number}
        source = cause.event
        inside = source.end - min(1 / MICROSECONDS, source.seconds / 2)
        yield common | {"ph": "s", **threads.place(source), "ts": inside * MICROSECONDS}
        yield common | {
            "ph": "f", "bp": "e", **threads.place(event), "ts": event.start * MICROSECONDS
        }  # fmt: skip


def _named(what: str, process: int, thread: int, **values: str | int) -> Record:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": values}
