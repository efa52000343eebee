"""Who waits for whom: the control path of a run. Data goes through the object store.

One asynchronous actor holds what the interpreter holds for `local`: what has arrived on each edge,
whose turn it is, which versions are there. Every wait ends when the run fails, with its cause.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from rlinf_graph.backends.edges import Rows
from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray import waiting
from rlinf_graph.backends.ray.post import Address, Server
from rlinf_graph.backends.ray.state import Call, Part, Place, queues_of, rings_of
from rlinf_graph.backends.ray.waiting import Wait
from rlinf_graph.backends.record import IterationRecord, Recorder, Sightings
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.program import Program
from rlinf_graph.nodes.metric import Metrics

DEATH_S = 3.0
"""Seconds that a broken connection waits for the death that explains it."""


class Board:
    """The state that all processes of a run share."""

    def __init__(self, program: Program, kept: Kept) -> None:
        """Nothing has arrived. `kept` says which versions of the weights are held."""
        self._program = program
        names = {group.name for group in program.groups}
        self._queues, self._rings = queues_of(program, names), rings_of(program, names)
        self._versions: dict[str, dict[int, Any]] = defaultdict(dict)
        self._kept = kept
        self._addresses: dict[str, str] = {}
        self._failure: tuple[Diagnostic, ...] = ()
        self._failures: list[tuple[Diagnostic, ...]] = []
        self._heard: dict[waiting.Place, int] = defaultdict(int)
        self._asking: dict[waiting.Place, tuple[Call, float]] = {}
        self._records: list[IterationRecord] = []
        self._recorder = Recorder(
            sum(group.ranks for group in program.groups), self._records.append
        )
        self._waiters: dict[str, list[asyncio.Future[None]]] = defaultdict(list)
        self._post = Server(self._hear)

    async def open(self) -> Address:
        """Listen to the ranks; where."""
        return await self._post.start(ray.util.get_node_ip_address())

    async def take_in(self, told: Sequence[Call]) -> None:
        """What a rank tells, in order."""
        for method, arguments in told:
            await getattr(self, method)(*arguments)

    async def answer(self, method: str, arguments: Sequence[Any]) -> Any:
        """The answer to a question whose answer has references."""
        return await getattr(self, method)(*arguments)

    async def nothing(self) -> None:
        """What was told before has been heard."""

    async def _hear(
        self, who: waiting.Place, told: Sequence[Call], question: Call | None
    ) -> tuple[Any, bool]:
        """Take in what a rank tells, in order, and answer its question."""
        self._heard[who] += 1
        try:
            await self.take_in(told)
            if question is None:
                return None, False
            self._asking[who] = question, time.monotonic()
            try:
                answer = await self.answer(*question)
            finally:
                del self._asking[who]
        except CompileError as error:
            return ("error", error), True
        except Exception as error:
            await self.fail((Diagnostic("RG0609", f"the board cannot go on: {error!r}"),))
            raise
        return ("references", None) if _refers(answer) else ("answer", answer), True

    async def room(self, places: Sequence[Place]) -> None:
        """Wait until edges take samples of moments; from then on their places are taken."""
        for edge, moment in places:
            queue = self._queues[edge]
            await self._until(edge, lambda queue=queue, moment=moment: queue.has_room(moment))
            queue.open(moment)

    async def put(self, place: Place, part: Part) -> None:
        """Samples of an edge are there."""
        edge, moment = place
        self._queues[edge].put(moment, part)
        self._notify(edge)

    async def get(self, wanted: Mapping[Place, Rows]) -> dict[Place, dict[int, Part]]:
        """Wait for samples of some edges; by place and number, the batches that hold them."""
        found: dict[Place, dict[int, Part]] = {}
        for (edge, moment), rows in wanted.items():
            queue = self._queues[edge]
            here = (moment, rows)
            await self._until(edge, lambda queue=queue, here=here: queue.has(*here))
            found[edge, moment] = queue.holding(moment, rows)
        return found

    async def free(self, place: Place) -> None:
        """A consumer is done with a moment of an edge."""
        edge, moment = place
        self._queues[edge].free(moment)
        self._notify(edge)

    async def acquire(self, who: tuple[str, int], ring: str, position: int) -> None:
        """Wait for a turn."""
        state = self._rings[ring]
        await self._until(ring, lambda: state.may(position, who))
        state.take(who)

    async def release(self, ring: str) -> None:
        """A turn is over for one rank."""
        self._rings[ring].release()
        self._notify(ring)

    async def publish(self, model: str, version: int, reference: Any) -> None:
        """A version of a model's weights is there."""
        kept = self._versions[model]
        kept[version] = reference
        for old in self._kept.past(model, list(kept), version):
            del kept[old]
        self._notify(f"weights of {model}")

    async def weights(self, model: str, version: int) -> Any:
        """Wait for a version of a model's weights."""
        kept = self._versions[model]
        await self._until(f"weights of {model}", lambda: version in kept)
        return kept[version]

    async def offer(self, group: str, address: str) -> None:
        """Where rank 0 of a group meets the others."""
        self._addresses[group] = address
        self._notify(f"address of {group}")

    async def meet(self, group: str) -> str:
        """Wait for the address of rank 0 of one's group."""
        await self._until(f"address of {group}", lambda: group in self._addresses)
        return self._addresses[group]

    async def finish(self, iteration: int, metrics: Metrics, seen: Sightings) -> None:
        """A process is done with an iteration."""
        self._recorder.metrics[iteration].merge(metrics)
        self._recorder.add(iteration, seen)
        self._recorder.finish(iteration)
        self._notify("records")

    async def fail(self, diagnostics: tuple[Diagnostic, ...], broken: bool = False) -> None:
        """End the run; the first cause is kept, later ones are counted.

        A `broken` connection is a cause only where no rank fails in `DEATH_S`, and none dies.
        """
        if diagnostics != self._failure:
            self._failures.append(diagnostics)
            if broken and not self._failure:
                await asyncio.sleep(DEATH_S)
            self._failure = self._failure or diagnostics
        for key in list(self._waiters):
            self._notify(key)

    async def failed_besides(self, cause: tuple[Diagnostic, ...]) -> int:
        """How many ranks have failed by themselves and not by this cause."""
        return sum(failure != cause for failure in self._failures)

    async def asking(self) -> tuple[dict[waiting.Place, int], dict[waiting.Place, float]]:
        """How many messages of each rank have come, and since when which ranks wait, by this
        process's clock."""
        since = {who: since for who, (_question, since) in self._asking.items()}
        return dict(self._heard), since

    async def waits(self) -> list[Wait]:
        """Who waits for whom now."""
        return waiting.all_waits(self._program, self._queues, self._rings, self._asking)

    async def records(self, known: int, timeout: float) -> list[IterationRecord]:
        """Finished iterations after the first `known`; waits for one, but not longer than that."""
        try:
            async with asyncio.timeout(timeout):
                await self._until("records", lambda: len(self._records) > known)
        except TimeoutError:
            return []
        return self._records[known:]

    async def failure(self) -> tuple[Diagnostic, ...]:
        """Why the run failed; empty while it has not."""
        return self._failure

    async def _until(self, key: str, ready: Callable[[], bool]) -> None:
        """Wait for a condition of an edge, a ring or something else that changes under this name;
        a failure of the run is raised instead."""
        while not self._failure and not ready():
            future = asyncio.get_running_loop().create_future()
            self._waiters[key].append(future)
            await future
        if self._failure:
            raise CompileError(self._failure)

    def _notify(self, key: str) -> None:
        for future in self._waiters.pop(key, ()):
            if not future.done():
                future.set_result(None)


def _refers(answer: Any) -> bool:
    """Whether an answer of `get` or `weights` has references in it."""
    if isinstance(answer, dict):
        parts: Any = (part for parts in answer.values() for part in parts.values())
        return any(isinstance(held, ray.ObjectRef) for _rows, held in parts)
    return isinstance(answer, ray.ObjectRef)
