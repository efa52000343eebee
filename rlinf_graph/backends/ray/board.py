"""Who waits for whom: the control path of a run, in an actor of its own.

It holds what the interpreter holds for `local`: what has arrived on each edge, whose turn it is,
which versions are there. Every wait ends when the run fails, with its cause.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import ray

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray import waiting
from rlinf_graph.backends.ray.desk import Desk
from rlinf_graph.backends.ray.post import Address, Server
from rlinf_graph.backends.ray.state import Buckets, Call, Newest, refers
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
        self._hall = _Hall(program, kept)
        self._news = asyncio.Event()

    async def open(self) -> Address:
        """Listen to the ranks; where."""
        loop = asyncio.get_running_loop()
        self._hall.changed = lambda: loop.call_soon_threadsafe(self._news.set)
        return Server(self._hall.hear).start(ray.util.get_node_ip_address())

    async def take_in(self, told: Sequence[Call]) -> None:
        """What a rank tells, in order."""
        with self._hall.lock:
            self._hall.take_in(told)

    async def answer(self, method: str, arguments: Sequence[Any]) -> Any:
        """The answer to a question that can be answered, and whose answer has references."""
        with self._hall.lock:
            return self._hall.desk.look((method, tuple(arguments)))

    async def fail(self, diagnostics: tuple[Diagnostic, ...], broken: bool = False) -> None:
        """End the run; the first cause is kept, later ones are counted.

        A `broken` connection is a cause only where no rank fails in `DEATH_S`, and none dies.
        """
        hall = self._hall
        if diagnostics == hall.desk.failure:
            return
        hall.failures.append(diagnostics)
        if broken:
            hall.broken.append(diagnostics)
        if broken and not hall.desk.failure:
            await asyncio.sleep(DEATH_S)
        with hall.lock:
            hall.end(diagnostics)

    async def failed_besides(self, cause: tuple[Diagnostic, ...]) -> int:
        """How many ranks have failed by themselves and not by this cause."""
        return sum(failure != cause for failure in self._hall.failures)

    async def is_broken_link(self, cause: tuple[Diagnostic, ...]) -> bool:
        """Whether a cause is a connection that broke, so that a death may be behind it."""
        return cause in self._hall.broken

    async def asking(self) -> tuple[dict[waiting.Place, int], dict[waiting.Place, float]]:
        """How many messages of each rank have come, and since when which ranks wait, by this
        process's clock."""
        with self._hall.lock:
            return dict(self._hall.heard), self._hall.desk.since()

    async def answered(self, who: waiting.Place) -> str:
        """What a rank was given last; empty where that is nothing."""
        return self._hall.desk.answered(who)

    async def waits(self) -> list[Wait]:
        """Who waits for whom now."""
        with self._hall.lock:
            return self._hall.desk.waits()

    async def records(self, known: int, timeout: float) -> list[IterationRecord]:
        """Finished iterations after the first `known`; waits for one, but not longer than that.

        Raises:
            CompileError: the first cause, when the run has failed.
        """
        hall, end = self._hall, time.monotonic() + timeout
        while not hall.desk.failure and len(hall.records) <= known and time.monotonic() < end:
            self._news.clear()
            if len(hall.records) > known:
                break
            try:
                await asyncio.wait_for(self._news.wait(), end - time.monotonic())
            except TimeoutError:
                break
        if hall.desk.failure:
            raise CompileError(hall.desk.failure)
        now = time.monotonic()
        return [replace(record, age=now - ended) for record, ended in hall.records[known:]]

    async def failure(self) -> tuple[Diagnostic, ...]:
        """Why the run failed; empty while it has not."""
        return self._hall.desk.failure


class _Hall:
    """What the thread that hears the ranks shares with the board's calls; no method of an actor's
    class, of which Ray wraps each.

    Attributes:
        lock: held by who uses the desk.
        desk: of the whole run.
        heard: messages of each rank.
        failures: by ranks.
        broken: those of them that are broken connections.
        records: finished iterations, and when.
        changed: called when an iteration is finished, or the run.
    """

    def __init__(self, program: Program, kept: Kept) -> None:
        self.lock = threading.Lock()
        self.desk = Desk(program, {group.name for group in program.groups}, kept)
        self.heard: dict[waiting.Place, int] = defaultdict(int)
        self.failures: list[tuple[Diagnostic, ...]] = []
        self.broken: list[tuple[Diagnostic, ...]] = []
        self.records: list[tuple[IterationRecord, float]] = []
        self.changed: Callable[[], Any] = lambda: None
        self._recorder = Recorder(sum(group.ranks for group in program.groups), self._record)

    def hear(
        self,
        reply: Callable[[Any], None],
        who: waiting.Place,
        told: Sequence[Call],
        question: Call | None,
    ) -> None:
        """Take in what a rank tells, in order, and answer its question when that can be done."""
        with self.lock:
            self.heard[who] += 1
            try:
                self.take_in(told)
                if question is not None:
                    self.desk.ask(who, question, lambda answer: reply(_sent(answer)))
            except Exception as error:
                self.end((Diagnostic("RG0609", f"the board cannot go on: {error!r}"),))
                raise

    def take_in(self, told: Sequence[Call]) -> None:
        """What a rank tells."""
        for method, arguments in told:
            if method == "finish":
                self._finish(*arguments)
            else:
                self.desk.tell(method, arguments)

    def end(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        """The run has failed."""
        self.desk.fail(diagnostics)
        self.changed()

    def _finish(self, iteration: int, metrics: Metrics, seen: Sightings) -> None:
        """A rank is done with an iteration."""
        self._recorder.metrics[iteration].merge(metrics)
        self._recorder.add(iteration, seen)
        self._recorder.finish(iteration)

    def _record(self, record: IterationRecord) -> None:
        self.records.append((record, time.monotonic()))
        self.changed()


def _sent(answer: Any) -> tuple[str, Any]:
    """What goes back over a socket: references cannot."""
    if isinstance(answer, CompileError):
        return "error", answer
    return ("references", None) if _refers(answer) else ("answer", answer)


def _refers(answer: Any) -> bool:
    """Whether an answer of `get`, `weights` or `newer` has references in it."""
    if isinstance(answer, Newest):
        answer = answer.weights
    if isinstance(answer, dict):
        parts: Any = (part for parts in answer.values() for part in parts.values())
        return any(isinstance(held.data, ray.ObjectRef) for _rows, held in parts)
    return isinstance(answer, list) and refers(cast("list[Buckets]", answer))
