"""Who waits for whom: the control path of a run. Data goes through the object store.

One asynchronous actor holds what the interpreter holds for `local`: what has arrived on each edge,
whose turn it is, which versions are there. Every wait ends when the run fails, with its cause.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlinf_graph.backends.edges import Rows
from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray import waiting
from rlinf_graph.backends.ray.mailbox import Call, Place
from rlinf_graph.backends.ray.waiting import Wait
from rlinf_graph.backends.record import IterationRecord, Recorder, Sightings
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.position import Moment
from rlinf_graph.ir.program import Channel, Program
from rlinf_graph.nodes.metric import Metrics

DEATH_S = 3.0
"""Seconds that a broken connection waits for the death that explains it."""

Part = tuple[Rows, Any]
"""Sample indices, and a list with the batch that holds them, or a reference of it."""


class _Queue:
    """An edge: which samples of which moment are accounted for, and where they are."""

    def __init__(self, channel: Channel, consumers: int) -> None:
        self.channel, self.consumers = channel, consumers
        self.parts: dict[Moment, list[Part]] = {}
        self.freed: dict[Moment, int] = defaultdict(int)

    def has_room(self, moment: Moment) -> bool:
        return moment in self.parts or len(self.parts) < self.channel.capacity

    def open(self, moment: Moment) -> None:
        self.parts.setdefault(moment, [])

    def put(self, moment: Moment, rows: Rows, reference: Any) -> None:
        self.parts[moment].append((rows, reference))

    def has(self, moment: Moment, rows: Rows) -> bool:
        come = self.parts.get(moment)
        if not come:
            return False
        known = come[0][0] if len(come) == 1 else np.concatenate([rows for rows, _held in come])
        return np.array_equal(known, rows) or bool(np.isin(rows, known).all())

    def holding(self, moment: Moment, rows: Rows) -> dict[int, Any]:
        parts = enumerate(self.parts[moment])
        return {number: held for number, (index, held) in parts if np.isin(index, rows).any()}

    def free(self, moment: Moment) -> None:
        self.freed[moment] += 1
        if self.freed[moment] == self.consumers:
            for held in (self.parts, self.freed):
                held.pop(moment, None)


class _Ring:
    """Turns on shared devices."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.turn, self.round, self.released = sizes, 0, 0, 0
        self.taken: dict[tuple[str, int], int] = defaultdict(int)

    def may(self, position: int, key: tuple[str, int]) -> bool:
        return (self.round, self.turn) == (self.taken[key], position)

    def release(self) -> None:
        self.released += 1
        if self.released == self.sizes[self.turn]:
            self.released = 0
            self.turn = (self.turn + 1) % len(self.sizes)
            self.round += self.turn == 0


class Board:
    """The state that all processes of a run share."""

    def __init__(self, program: Program, kept: Kept) -> None:
        """Nothing has arrived. `kept` says which versions of the weights are held."""
        self._program = program
        ranks = {group.name: group.ranks for group in program.groups}
        self._queues = {c.edge: _Queue(c, ranks[c.target]) for c in program.channels}
        self._rings = {
            r.name: _Ring([sum(ranks[name] for name in names) for names in r.positions])
            for r in program.rings
        }
        self._versions: dict[str, dict[int, Any]] = defaultdict(dict)
        self._kept = kept
        self._addresses: dict[str, str] = {}
        self._failure: tuple[Diagnostic, ...] = ()
        self._failures: list[tuple[Diagnostic, ...]] = []
        self._heard = 0
        self._asking: dict[waiting.Place, tuple[Call, float]] = {}
        self._answered: dict[waiting.Place, tuple[Call, float]] = {}
        self._records: list[IterationRecord] = []
        self._recorder = Recorder(sum(ranks.values()), self._records.append)
        self._changed = asyncio.Condition()

    async def hear(
        self, told: Sequence[Call], question: Call | None = None, who: waiting.Place | None = None
    ) -> Any:
        """Take in what a rank tells, in order, and answer its question."""
        self._heard += 1
        for method, arguments in told:
            await getattr(self, method)(*arguments)
        if question is None:
            return None
        method, arguments = question
        if who is None:
            return await getattr(self, method)(*arguments)
        self._asking[who] = question, time.monotonic()
        try:
            return await getattr(self, method)(*arguments)
        finally:
            self._answered[who] = self._asking.pop(who)

    async def room(self, places: Sequence[Place]) -> None:
        """Wait until edges take samples of moments; from then on their places are taken."""
        queues = [(self._queues[edge], moment) for edge, moment in places]
        await self._until(lambda: all(queue.has_room(moment) for queue, moment in queues))
        for queue, moment in queues:
            queue.open(moment)

    async def put(self, place: Place, rows: Rows, reference: Any) -> None:
        """Samples of an edge are there."""
        edge, moment = place
        self._queues[edge].put(moment, rows, reference)
        await self._notify()

    async def get(self, wanted: Mapping[Place, Rows]) -> dict[Place, dict[int, Any]]:
        """Wait for samples of some edges; by place and number, the batches that hold them."""
        queues = [(self._queues[edge], moment, rows) for (edge, moment), rows in wanted.items()]
        await self._until(lambda: all(queue.has(moment, rows) for queue, moment, rows in queues))
        return {
            (edge, moment): self._queues[edge].holding(moment, rows)
            for (edge, moment), rows in wanted.items()
        }

    async def free(self, place: Place) -> None:
        """A consumer is done with a moment of an edge."""
        edge, moment = place
        self._queues[edge].free(moment)
        await self._notify()

    async def acquire(self, who: tuple[str, int], ring: str, position: int) -> None:
        """Wait for a turn."""
        state = self._rings[ring]
        await self._until(lambda: state.may(position, who))
        state.taken[who] += 1

    async def release(self, ring: str) -> None:
        """A turn is over for one rank."""
        self._rings[ring].release()
        await self._notify()

    async def publish(self, model: str, version: int, reference: Any) -> None:
        """A version of a model's weights is there."""
        kept = self._versions[model]
        kept[version] = reference
        for old in self._kept.past(model, list(kept), version):
            del kept[old]
        await self._notify()

    async def weights(self, model: str, version: int) -> Any:
        """Wait for a version of a model's weights."""
        kept = self._versions[model]
        await self._until(lambda: version in kept)
        return kept[version]

    async def offer(self, group: str, address: str) -> None:
        """Where rank 0 of a group meets the others."""
        self._addresses[group] = address
        await self._notify()

    async def meet(self, group: str) -> str:
        """Wait for the address of rank 0 of one's group."""
        await self._until(lambda: group in self._addresses)
        return self._addresses[group]

    async def finish(self, iteration: int, metrics: Metrics, seen: Sightings) -> None:
        """A process is done with an iteration."""
        self._recorder.metrics[iteration].merge(metrics)
        self._recorder.add(iteration, seen)
        self._recorder.finish(iteration)
        await self._notify()

    async def fail(self, diagnostics: tuple[Diagnostic, ...], broken: bool = False) -> None:
        """End the run; the first cause is kept, later ones are counted.

        A `broken` connection is a cause only where no rank fails in `DEATH_S`, and none dies.
        """
        if diagnostics != self._failure:
            self._failures.append(diagnostics)
            if broken and not self._failure:
                await asyncio.sleep(DEATH_S)
            self._failure = self._failure or diagnostics
        await self._notify()

    async def failed_besides(self, cause: tuple[Diagnostic, ...]) -> int:
        """How many ranks have failed by themselves and not by this cause."""
        return sum(failure != cause for failure in self._failures)

    async def asking(self) -> tuple[int, dict[waiting.Place, float]]:
        """How many calls have come, and since when which ranks wait, by this process's clock."""
        return self._heard, {who: since for who, (_question, since) in self._asking.items()}

    async def answered(self, who: waiting.Place) -> str:
        """What a rank was given last; empty where that is nothing."""
        last = self._answered.get(who)
        return waiting.given(last[0]) if last else ""

    async def waits(self) -> list[Wait]:
        """Who waits for whom now."""
        now, asking = time.monotonic(), {who: call for who, (call, _) in self._asking.items()}
        read = (
            waiting.read(self._program, self._queues, self._rings, asking, who) for who in asking
        )
        found = [wait for wait in read if wait is not None]
        return [replace(w, seconds=now - self._asking[w.who][1]) for w in found]

    async def records(self, known: int, timeout: float) -> list[IterationRecord]:
        """Finished iterations after the first `known`; waits for one, but not longer than that."""
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda: len(self._records) > known)
        except TimeoutError:
            return []
        return self._records[known:]

    async def failure(self) -> tuple[Diagnostic, ...]:
        """Why the run failed; empty while it has not."""
        return self._failure

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Wait for a condition; a failure of the run is raised instead."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._failure) or ready())
        if self._failure:
            raise CompileError(self._failure)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
