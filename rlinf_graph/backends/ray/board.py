"""Who waits for whom: the control path of a run, in an actor of its own.

It holds what the interpreter holds for `local`: what has arrived on each edge, whose turn it is,
which versions are there. Every wait ends when the run fails, with its cause.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray import waiting
from rlinf_graph.backends.ray.post import Address, Server
from rlinf_graph.backends.ray.state import Call, Question, State
from rlinf_graph.backends.ray.waiting import Wait
from rlinf_graph.backends.record import IterationRecord, Recorder, Sightings
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.program import Program
from rlinf_graph.nodes.metric import Metrics

WIRE = "rlinf_graph.backends.ray.wire"
"""What batches travel as, with torch behind it."""

DEATH_S = 3.0
"""Seconds that a broken connection waits for the death that explains it."""


@dataclass(frozen=True)
class _Asked:
    """A question that is not answered yet."""

    who: waiting.Place
    question: Question
    reply: Callable[[Any], None]


class Board:
    """The state that all processes of a run share."""

    def __init__(self, program: Program, kept: Kept) -> None:
        """Nothing has arrived. `kept` says which versions of the weights are held."""
        self._program = program
        self._state = State(program, {group.name for group in program.groups}, kept)
        self._failure: tuple[Diagnostic, ...] = ()
        self._failures: list[tuple[Diagnostic, ...]] = []
        self._heard: dict[waiting.Place, int] = defaultdict(int)
        self._asking: dict[waiting.Place, tuple[Call, float]] = {}
        self._answered: dict[waiting.Place, Call] = {}
        self._waiters: dict[str, list[_Asked]] = defaultdict(list)
        self._records: list[IterationRecord] = []
        ranks = sum(group.ranks for group in program.groups)
        self._recorder = Recorder(ranks, self._records.append)
        self._news = asyncio.Event()
        self._post = Server(self._hear)

    async def open(self) -> Address:
        """Listen to the ranks; where."""
        importlib.import_module(WIRE)  # takes seconds: not when the first batch comes
        return await self._post.start(ray.util.get_node_ip_address())

    async def take_in(self, told: Sequence[Call]) -> None:
        """What a rank tells, in order."""
        self._take_in(told)

    async def answer(self, method: str, arguments: Sequence[Any]) -> Any:
        """The answer to a question that can be answered, and whose answer has references."""
        return getattr(self._state, method)(*arguments).answer()

    async def fail(self, diagnostics: tuple[Diagnostic, ...], broken: bool = False) -> None:
        """End the run; the first cause is kept, later ones are counted.

        A `broken` connection is a cause only where no rank fails in `DEATH_S`, and none dies.
        """
        if diagnostics == self._failure:
            return
        self._failures.append(diagnostics)
        if broken and not self._failure:
            await asyncio.sleep(DEATH_S)
        self._end(diagnostics)

    async def failed_besides(self, cause: tuple[Diagnostic, ...]) -> int:
        """How many ranks have failed by themselves and not by this cause."""
        return sum(failure != cause for failure in self._failures)

    async def asking(self) -> tuple[dict[waiting.Place, int], dict[waiting.Place, float]]:
        """How many messages of each rank have come, and since when which ranks wait, by this
        process's clock."""
        since = {who: since for who, (_question, since) in self._asking.items()}
        return dict(self._heard), since

    async def answered(self, who: waiting.Place) -> str:
        """What a rank was given last; empty where that is nothing."""
        last = self._answered.get(who)
        return waiting.given(last) if last else ""

    async def waits(self) -> list[Wait]:
        """Who waits for whom now."""
        queues, rings = self._state.queues, self._state.rings
        return waiting.all_waits(self._program, queues, rings, self._asking)

    async def records(self, known: int, timeout: float) -> list[IterationRecord]:
        """Finished iterations after the first `known`; waits for one, but not longer than that.

        Raises:
            CompileError: the first cause, when the run has failed.
        """
        end = time.monotonic() + timeout
        while not self._failure and len(self._records) <= known and time.monotonic() < end:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), end - time.monotonic())
            except TimeoutError:
                break
        if self._failure:
            raise CompileError(self._failure)
        return self._records[known:]

    async def failure(self) -> tuple[Diagnostic, ...]:
        """Why the run failed; empty while it has not."""
        return self._failure

    def finish(self, iteration: int, metrics: Metrics, seen: Sightings) -> str:
        """A process is done with an iteration."""
        self._recorder.metrics[iteration].merge(metrics)
        self._recorder.add(iteration, seen)
        self._recorder.finish(iteration)
        self._news.set()
        return "records"

    def _hear(
        self,
        reply: Callable[[Any], None],
        who: waiting.Place,
        told: Sequence[Call],
        question: Call | None,
    ) -> None:
        """Take in what a rank tells, in order, and answer its question when that can be done."""
        self._heard[who] += 1
        try:
            self._take_in(told)
            if question is not None:
                self._asking[who] = question, time.monotonic()
                method, arguments = question
                self._try(_Asked(who, getattr(self._state, method)(*arguments), reply))
        except Exception as error:
            self._end((Diagnostic("RG0609", f"the board cannot go on: {error!r}"),))
            raise

    def _take_in(self, told: Sequence[Call]) -> None:
        for method, arguments in told:
            of = self if method == "finish" else self._state
            changed: str = getattr(of, method)(*arguments)
            for asked in self._waiters.pop(changed, ()):
                self._try(asked)

    def _try(self, asked: _Asked) -> None:
        """Answer a question, or keep it until what is lacking has changed."""
        if self._failure:
            self._settle(asked, ("error", CompileError(self._failure)))
            return
        blocked = asked.question.blocked_by()
        if blocked is not None:
            self._waiters[blocked].append(asked)
            return
        answer = asked.question.answer()
        self._settle(asked, ("references", None) if _refers(answer) else ("answer", answer))

    def _settle(self, asked: _Asked, answer: Any) -> None:
        self._answered[asked.who] = self._asking.pop(asked.who)[0]
        asked.reply(answer)

    def _end(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        """The run has failed: all who wait hear of it."""
        self._failure = self._failure or diagnostics
        waiters, self._waiters = self._waiters, defaultdict(list)
        for some in waiters.values():
            for asked in some:
                self._try(asked)
        self._news.set()


def _refers(answer: Any) -> bool:
    """Whether an answer of `get` or `weights` has references in it."""
    if isinstance(answer, dict):
        parts: Any = (part for parts in answer.values() for part in parts.values())
        return any(isinstance(held, ray.ObjectRef) for _rows, held in parts)
    return isinstance(answer, ray.ObjectRef)
