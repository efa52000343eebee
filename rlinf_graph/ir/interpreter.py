"""What the instructions of a program mean: order, blocking, versions. Not what they compute.

Every rank of every worker group is a process: a generator that yields when it has to wait. An
interpreter is this scheduler together with a `Machine`, which carries out the work and says how
long it took: with a cost model (simulation) or by doing it (`local`). Each process has its own
clock, so a run in one process still gives the timeline of workers side by side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.position import Moment, Position
from rlinf_graph.ir.program import (
    Accumulate,
    Acquire,
    Advance,
    Await,
    Channel,
    Free,
    Gather,
    Instruction,
    Keep,
    Load,
    Offload,
    OptimizerStep,
    Program,
    Publish,
    Recv,
    Release,
    Repartition,
    Ring,
    Run,
    Send,
    WorkerGroup,
    unroll,
)
from rlinf_graph.ir.timeline import Event

KINDS: dict[type, str] = {
    Run: "run",
    Accumulate: "accumulate",
    OptimizerStep: "optimizer_step",
    Load: "load",
    Offload: "offload",
    Await: "sync",
}
Process = Generator[str, None, None]


class Machine(Protocol):
    """Carries out instructions."""

    def perform(self, group: WorkerGroup, instruction: Instruction, at: Position) -> float:
        """Do what an instruction asks and return the seconds it took."""
        ...

    def take(
        self, group: WorkerGroup, recv: Recv, at: Position, moment: Moment, rows: NDArray[np.int64]
    ) -> None:
        """Bind those of the named samples that an edge has at a moment to a parameter.

        All of them have been accounted for; fewer may have been sent.
        """
        ...

    def handover(self, instruction: Recv | Acquire | Await, at: Position, samples: int) -> float:
        """Seconds from when what a rank waits for is there until the rank has it."""
        ...

    def put(
        self, group: WorkerGroup, send: Send, at: Position, moment: Moment, rows: NDArray[np.int64]
    ) -> None:
        """Hand an output to an edge at a moment: some or all of `rows`, the position's share."""
        ...

    def drop(self, edge: str, moment: Moment) -> None:
        """Forget a moment of an edge: every consumer is done with it."""
        ...

    def finish(self, group: WorkerGroup, at: Position) -> None:
        """A rank has carried out an iteration of its list."""
        ...


@dataclass
class _Queue:
    """Arrival times of the samples of each moment still needed; NaN where not there yet.

    Where all came at once, `whole` has their time.
    """

    channel: Channel
    consumers: int
    arrived: dict[Moment, NDArray[np.float64]] = field(default_factory=dict[Moment, Any])
    whole: dict[Moment, float] = field(default_factory=dict[Moment, float])
    freed_by: dict[Moment, int] = field(default_factory=lambda: defaultdict[Moment, int](int))
    free_times: list[float] = field(default_factory=list[float])
    opened: int = 0
    free_at: float = 0.0

    def has_room(self, moment: Moment) -> bool:
        """Whether samples of a moment may be put."""
        held = self.opened - len(self.free_times)
        return moment in self.arrived or held < self.channel.capacity

    def open(self, moment: Moment) -> float:
        """Begin a moment unless it has begun; when its place became free."""
        if moment in self.arrived:
            return 0.0
        self.arrived[moment] = np.full(self.channel.samples, np.nan)
        self.opened += 1
        before = self.opened - 1 - self.channel.capacity
        return self.free_times[before] if before >= 0 else 0.0

    def put(self, moment: Moment, rows: NDArray[np.int64], time: float) -> None:
        """Samples have arrived."""
        if len(rows) == self.channel.samples:
            self.whole[moment] = time
        else:
            self.arrived[moment][rows] = time

    def has(self, moment: Moment, rows: NDArray[np.int64]) -> bool:
        """Whether all of these samples have arrived."""
        if moment in self.whole:
            return True
        times = self.arrived.get(moment)
        return times is not None and not np.isnan(times[rows]).any()

    def latest(self, moment: Moment, rows: NDArray[np.int64]) -> float:
        """When the last of these samples arrived."""
        if moment in self.whole:
            return self.whole[moment]
        return float(self.arrived[moment][rows].max(initial=0.0))

    def drop(self, moment: Moment, time: float) -> None:
        """Forget a moment."""
        del self.arrived[moment], self.freed_by[moment]
        self.whole.pop(moment, None)
        self.free_times.append(time)


@dataclass
class _RingState:
    ring: Ring
    turn: int = 0
    round: int = 0
    taken: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict[Any, int](int))
    released: int = 0
    last_release: float = 0.0
    free_at: float = 0.0


class Interpreter:
    """Runs a program on a machine."""

    def __init__(
        self, program: Program, machine: Machine, *, seed: int = 0, one_rank: bool = False
    ) -> None:
        """`one_rank` lets rank 0 stand for its whole group, which is what it does in SPMD."""
        self.program, self.machine, self.seed, self.one_rank = program, machine, seed, one_rank
        self.events: list[Event] = []
        self.clock: dict[tuple[str, int], float] = defaultdict(float)
        self.first = 0
        self._ranks = {g.name: 1 if one_rank else g.ranks for g in program.groups}
        self._versions: dict[str, dict[int, float]] = defaultdict(dict[int, float])
        self._queues = {c.edge: _Queue(c, self.ranks(c.target)) for c in program.channels}
        self._rings = {ring.name: _RingState(ring) for ring in program.rings}
        self._published: dict[str, int] = defaultdict(int)
        self._at_step: dict[str, list[float]] = defaultdict(list)
        self._steps_done: dict[str, int] = defaultdict(int)
        self._step_end: dict[str, float] = {}
        self._done = 0

    def ranks(self, group: str) -> int:
        """How many processes stand for a group."""
        return self._ranks[group]

    def run(self, iterations: int, first: int = 0) -> list[Event]:
        """Interpret `iterations` iterations and return their events in the order they ended.

        Raises:
            CompileError: RG0603, when nothing can go on, naming who waits for what.
        """
        self.first = first
        waiting: dict[tuple[str, int], str] = {}
        processes = {
            (group.name, rank): self._process(group, rank, range(first, first + iterations))
            for group in self.program.groups
            for rank in range(self.ranks(group.name))
        }
        while processes:
            progress = False
            for key, process in list(processes.items()):
                before = self._done
                try:
                    waiting[key] = next(process)
                    progress |= before != self._done
                except StopIteration:
                    del processes[key]
                    waiting.pop(key, None)
                    progress = True
            if not progress:
                notes = tuple(f"`{g}` rank {r} waits for {why}" for (g, r), why in waiting.items())
                raise fail("RG0603", f"program `{self.program.name}` cannot go on", notes=notes)
        return self.events

    def _process(self, group: WorkerGroup, rank: int, iterations: range) -> Process:
        for iteration in iterations:
            start = Position(iteration, rank)
            for instruction, at in unroll(group.body, start):
                yield from self._step(group, instruction, at)
                self._done += 1
            self.machine.finish(group, start)

    def _step(self, group: WorkerGroup, instruction: Instruction, at: Position) -> Process:
        match instruction:
            case Recv():
                yield from self._recv(group, instruction, at)
            case Send():
                yield from self._send(group, instruction, at)
            case Acquire():
                yield from self._acquire(group, instruction, at)
            case Release():
                self._release(group, instruction, at)
            case Free():
                self._free(group, instruction, at)
            case Publish():
                self._publish(group, instruction, at)
            case Await():
                yield from self._await(group, instruction, at)
            case OptimizerStep():
                yield from self._optimizer_step(group, instruction, at)
            case Advance() | Keep() | Gather() | Repartition():
                self.machine.perform(group, instruction, at)
            case _:
                self._perform(group, instruction, at)

    def _perform(self, group: WorkerGroup, instruction: Instruction, at: Position) -> None:
        key = (group.name, at.rank)
        start = self.clock[key]
        self.clock[key] = start + self.machine.perform(group, instruction, at)
        devices = group.devices_of(at.rank) if not self.one_rank else group.devices
        kind = KINDS[type(instruction)]
        self.events.append(Event(kind, group.name, at, devices, start, self.clock[key]))

    def _recv(self, group: WorkerGroup, recv: Recv, at: Position) -> Process:
        queue = self._queues[recv.edge]
        rows = recv.select.rows(at, queue.channel.samples, self.ranks(group.name), self.seed)
        moment = at.moment(queue.channel.depth, recv.lag)
        while not queue.has(moment, rows):
            yield f"samples of `{recv.edge}`, {_shown(moment)}"
        self._wait_until(group, at, queue.latest(moment, rows))
        self._get(group, recv, at, len(rows))
        self.machine.take(group, recv, at, moment, rows)

    def _send(self, group: WorkerGroup, send: Send, at: Position) -> Process:
        queue = self._queues[send.edge]
        moment = at.moment(queue.channel.depth)
        while not queue.has_room(moment):
            yield f"room in `{send.edge}`"
        self._wait_until(group, at, queue.open(moment))
        whole, ranks = bool(send.gathered), self.ranks(group.name)
        rows = group.share(at, queue.channel.samples, ranks, whole=whole)
        self.machine.put(group, send, at, moment, rows)
        queue.put(moment, rows, self.clock[group.name, at.rank])

    def _free(self, group: WorkerGroup, free: Free, at: Position) -> None:
        queue = self._queues[free.edge]
        moment = at.moment(queue.channel.depth, free.lag)
        queue.freed_by[moment] += 1
        queue.free_at = max(queue.free_at, self.clock[group.name, at.rank])
        if queue.freed_by[moment] == queue.consumers:
            queue.drop(moment, queue.free_at)
            self.machine.drop(free.edge, moment)

    def _acquire(self, group: WorkerGroup, acquire: Acquire, at: Position) -> Process:
        state, key = self._rings[acquire.turn], (group.name, at.rank)
        while (state.round, state.turn) != (state.taken[key], acquire.position):
            yield f"its turn on {acquire.turn} (position {state.turn} has it)"
        state.taken[key] += 1
        self._wait_until(group, at, state.free_at)
        self._get(group, acquire, at)

    def _release(self, group: WorkerGroup, release: Release, at: Position) -> None:
        state = self._rings[release.turn]
        state.released += 1
        holders = state.ring.positions[release.position]
        state.last_release = max(state.last_release, self.clock[group.name, at.rank])
        if state.released == sum(self.ranks(name) for name in holders):
            state.turn = (state.turn + 1) % len(state.ring.positions)
            state.round += state.turn == 0
            state.released = 0
            state.free_at = max(state.free_at, state.last_release)

    def _publish(self, group: WorkerGroup, publish: Publish, at: Position) -> None:
        self._published[publish.model] += 1
        self.machine.perform(group, publish, at)
        if self._published[publish.model] % self.ranks(group.name) == 0:
            times = self._versions[publish.model]
            times[at.iteration + 1] = self.clock[group.name, at.rank]

    def _await(self, group: WorkerGroup, awaited: Await, at: Position) -> Process:
        version = max(self.first, awaited.version(at.iteration))
        versions = self._versions[awaited.model]
        while version > self.first and version not in versions:
            yield f"version {version} of `{awaited.model}`"
        self._wait_until(group, at, versions.get(version, 0.0))
        self._get(group, awaited, at)
        self._perform(group, awaited, at)

    def _optimizer_step(self, group: WorkerGroup, step: OptimizerStep, at: Position) -> Process:
        """All ranks meet; the slowest sets the time."""
        arrived, ranks = self._at_step[group.name], self.ranks(group.name)
        turn = self._steps_done[group.name]
        arrived.append(self.clock[group.name, at.rank])
        while self._steps_done[group.name] == turn and len(self._at_step[group.name]) < ranks:
            yield f"the other ranks of `{group.name}`"
        if self._steps_done[group.name] == turn:
            self._step_end[group.name] = max(arrived)
            self._at_step[group.name] = []
            self._steps_done[group.name] += 1
        self._wait_until(group, at, self._step_end[group.name])
        self._perform(group, step, at)

    def _get(
        self, group: WorkerGroup, awaited: Recv | Acquire | Await, at: Position, samples: int = 0
    ) -> None:
        self.clock[group.name, at.rank] += self.machine.handover(awaited, at, samples)

    def _wait_until(self, group: WorkerGroup, at: Position, time: float) -> None:
        key = (group.name, at.rank)
        self.clock[key] = max(self.clock[key], time)


def _shown(moment: Moment) -> str:
    steps = "".join(f", step {step}" for step in moment[1:])
    return f"iteration {moment[0]}{steps}"
