"""What an event waited for, by the program: the event that had to end before it could begin."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from rlinf_graph.ir.interpreter import KINDS
from rlinf_graph.ir.position import Moment, Part, Position, Select
from rlinf_graph.ir.program import (
    Acquire,
    Await,
    Instruction,
    OptimizerStep,
    Program,
    Publish,
    Recv,
    Send,
    WorkerGroup,
    unroll,
)
from rlinf_graph.ir.timeline import Event

CauseKind = Literal["samples", "weights", "ranks", "turn", "room", "order"]
RANKING: tuple[CauseKind, ...] = ("order", "room", "turn", "ranks", "weights", "samples")
"""Of causes that end together, the last one is told."""

Blocker = tuple[Instruction, Position]


@dataclass(frozen=True)
class Cause:
    """An event that another one had to wait for; `order` is the one before it in its own list."""

    kind: CauseKind
    event: Event


class Causes:
    """Finds the causes of a run's events."""

    def __init__(self, program: Program, events: Sequence[Event]) -> None:
        """`events` are those of whole iterations, from the first one on."""
        self._groups = {group.name: group for group in program.groups}
        self._channels = {channel.edge: channel for channel in program.channels}
        self._rings = {ring.name: ring for ring in program.rings}
        self._trainers = {
            i.model: g.name
            for g in program.groups
            for i, _at in unroll(g.body, Position(0, 0))
            if isinstance(i, Publish)
        }
        self._ranks: dict[tuple[str, int], list[Event]] = defaultdict(list)
        self._lists: dict[tuple[str, int, int], list[Event]] = defaultdict(list)
        for event in sorted(events, key=lambda e: (e.start, e.end)):
            self._ranks[event.group, event.at.rank].append(event)
            self._lists[event.group, event.at.rank, event.at.iteration].append(event)
        self._place = {id(e): i for made in self._ranks.values() for i, e in enumerate(made)}
        self._index = {id(e): i for made in self._lists.values() for i, e in enumerate(made)}
        self._blockers = cache(self._find_blockers)
        self._produced = cache(self._find_produced)
        self._meeting = cache(self._find_meeting)
        self._last = cache(self._find_last)
        self._others = cache(self._find_others)

    def of(self, event: Event) -> Cause | None:
        """The cause that was there last; None at the beginning of a run."""
        found = list(self._all(event))
        return max(
            found,
            key=lambda c: (min(c.event.end, event.start), RANKING.index(c.kind)),
            default=None,
        )

    def _all(self, event: Event) -> Iterator[Cause]:
        place = self._place[id(event)]
        if place:
            yield Cause("order", self._ranks[event.group, event.at.rank][place - 1])
        blockers, _tail = self._blockers(event.group, event.at.iteration)
        index = self._index[id(event)]
        for instruction, at in blockers[index] if index < len(blockers) else ():
            cause = self._cause(event, index, instruction, at)
            if cause is not None and cause.event is not event:
                yield cause

    def _cause(
        self, event: Event, index: int, instruction: Instruction, at: Position
    ) -> Cause | None:
        kind: CauseKind
        match instruction:
            case Recv():
                kind, found = "samples", self._sender(event, instruction, at)
            case Await(model=model):
                version = instruction.version(at.iteration)
                kind, found = "weights", self._last(self._trainers[model], version - 1)
            case Acquire(turn=turn, position=position):
                kind, found = "turn", self._holder(event, turn, position)
            case OptimizerStep():
                kind, found = "ranks", self._meeting(event.group, event.at.iteration, index - 1)
            case Send(edge=edge):
                depth = self._channels[edge].depth
                found = None if depth else self._reader(edge, at.iteration)
                kind = "room"
            case _:
                return None
        return Cause(kind, found) if found is not None else None

    def _sender(self, event: Event, recv: Recv, at: Position) -> Event | None:
        """The producer's event that completed the samples."""
        channel = self._channels[recv.edge]
        starts, made = self._produced(recv.edge, at.moment(channel.depth, recv.lag))
        if recv.select.part is Part.ALL or (recv.select.permute and at.epoch > 0):
            return max((e for _end, e in made), key=lambda e: e.end, default=None)
        ranks = self._groups[event.group].ranks
        rows = recv.select.rows(replace(at, rank=event.at.rank), channel.samples, ranks)
        if not len(rows):
            return None
        first = max(0, bisect_right(starts, int(rows[0])) - 1)
        chosen = made[first : bisect_left(starts, int(rows[-1]) + 1)]
        held = [e for end, e in chosen if end > rows[0]]
        return max(held, key=lambda e: e.end, default=None)

    def _reader(self, edge: str, iteration: int) -> Event | None:
        """The end of the consumer's work for the iteration whose place this one takes."""
        channel = self._channels[edge]
        return self._last(channel.target, iteration - channel.capacity)

    def _holder(self, event: Event, turn: str, position: int) -> Event | None:
        """The last event of the others in a turn before this one."""
        ends, events = self._others(turn, position)
        before = bisect_right(ends, event.start) - 1
        return events[before] if before >= 0 else None

    def _find_blockers(
        self, name: str, iteration: int
    ) -> tuple[list[tuple[Blocker, ...]], tuple[Blocker, ...]]:
        """For each instruction that takes time, what may block between the one before and it."""
        body, made = self._groups[name].body, list[tuple[Blocker, ...]]()
        pending = list(_sends(body, iteration - 1)) if iteration else []
        for instruction, at in unroll(body, Position(iteration, 0)):
            if isinstance(instruction, Recv | Send | Acquire | Await | OptimizerStep):
                pending.append((instruction, at))
            if type(instruction) in KINDS:
                made.append(tuple(pending))
                pending = []
        return made, tuple(pending)

    def _find_produced(
        self, edge: str, moment: Moment
    ) -> tuple[list[int], list[tuple[int, Event]]]:
        """The producer's events of a moment: first rows, and (end of rows, event).

        What leaves a loop is there when the last step is over: all rows at once.
        """
        channel = self._channels[edge]
        group = self._groups[channel.source.node]
        iteration, steps = moment[0], moment[1:]
        ran = [
            event
            for rank in range(group.ranks)
            for event in self._lists.get((group.name, rank, iteration), [])
            if event.kind == "run" and event.at.steps[: channel.depth] == steps
        ]
        deeper = any(len(event.at.steps) > channel.depth for event in ran)
        last = max((event.at.steps for event in ran), default=())
        made = sorted(
            (_rows(group, event, channel.samples), id(event), event)
            for event in ran
            if not deeper or event.at.steps == last
        )
        return [rows[0] for rows, _, _ in made], [(rows[1], event) for rows, _, event in made]

    def _find_meeting(self, name: str, iteration: int, index: int) -> Event | None:
        """The rank that was last to come to an optimizer step."""
        lists = [self._lists.get((name, r, iteration), []) for r in range(self._groups[name].ranks)]
        came = [events[index] for events in lists if 0 <= index < len(events)]
        return max(came, key=lambda e: e.end, default=None)

    def _find_last(self, name: str, iteration: int) -> Event | None:
        """The end of a group's work for an iteration."""
        lists = [self._lists.get((name, r, iteration), []) for r in range(self._groups[name].ranks)]
        return max((e for events in lists for e in events), key=lambda e: e.end, default=None)

    def _find_others(self, turn: str, position: int) -> tuple[list[float], list[Event]]:
        ring = self._rings[turn]
        names = {n for i, part in enumerate(ring.positions) if i != position for n in part}
        events = [e for (name, _), made in self._ranks.items() if name in names for e in made]
        events.sort(key=lambda e: e.end)
        return [e.end for e in events], events


def _sends(body: tuple[Instruction, ...], iteration: int) -> Iterator[Blocker]:
    """What an iteration sends after its last work."""
    pending = list[Blocker]()
    for instruction, at in unroll(body, Position(iteration, 0)):
        if isinstance(instruction, Send):
            pending.append((instruction, at))
        if type(instruction) in KINDS:
            pending = []
    return iter(pending)


def _rows(group: WorkerGroup, event: Event, samples: int) -> tuple[int, int]:
    rows = Select(Part.CHUNK, group.chunks).rows(event.at, samples, group.ranks)
    return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
