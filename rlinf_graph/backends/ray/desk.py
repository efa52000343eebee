"""Takes in what ranks tell, and answers their questions as soon as that can be done.

The board of a run has one, and every process one for its own ranks. It does not know how messages
come; whoever has it sees to it that one is heard at a time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray import waiting
from rlinf_graph.backends.ray.state import Call, Question, State
from rlinf_graph.backends.ray.waiting import Wait
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.program import Program

Reply = Callable[[Any], None]
"""Takes the answer, or a `CompileError`."""


@dataclass(frozen=True)
class _Asked:
    """A question that is not answered yet."""

    who: waiting.Place
    question: Question
    reply: Reply


class Desk:
    """A `State`, and who waits for it to change.

    Attributes:
        heard: how often something was told or answered.
        failure: why the run failed; empty while it has not.
    """

    def __init__(self, program: Program, groups: Collection[str], kept: Kept) -> None:
        """Of the edges and rings that only these groups use; see `State`."""
        self.heard = 0
        self.failure: tuple[Diagnostic, ...] = ()
        self._program = program
        self._state = State(program, groups, kept)
        self._asking: dict[waiting.Place, tuple[Call, float]] = {}
        self._answered: dict[waiting.Place, Call] = {}
        self._waiters: dict[str, list[_Asked]] = defaultdict(list)

    def knows(self, name: str) -> bool:
        """Whether an edge or a ring is here."""
        return name in self._state.queues or name in self._state.rings

    def tell(self, method: str, arguments: tuple[Any, ...]) -> None:
        """Take in what a rank tells, and answer those who have waited for it."""
        self.heard += 1
        changed = getattr(self._state, method)(*arguments)
        for asked in self._waiters.pop(changed, ()):
            self._try(asked)

    def ask(self, who: waiting.Place, call: Call, reply: Reply) -> None:
        """Answer a question, now or when that can be done."""
        self._asking[who] = call, time.monotonic()
        method, arguments = call
        self._try(_Asked(who, getattr(self._state, method)(*arguments), reply))

    def look(self, call: Call) -> Any:
        """The answer to a question that can be answered."""
        method, arguments = call
        return getattr(self._state, method)(*arguments).answer()

    def fail(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        """The run has failed: all who wait hear of it. The first cause is kept."""
        self.failure = self.failure or diagnostics
        waiters, self._waiters = self._waiters, defaultdict(list)
        for some in waiters.values():
            for asked in some:
                self._try(asked)

    def since(self) -> dict[waiting.Place, float]:
        """Since when which ranks wait, by this process's clock."""
        return {who: since for who, (_call, since) in self._asking.items()}

    def answered(self, who: waiting.Place) -> str:
        """What a rank was given last; empty where that is nothing."""
        last = self._answered.get(who)
        return waiting.given(last) if last else ""

    def waits(self) -> list[Wait]:
        """Who waits for whom."""
        queues, rings = self._state.queues, self._state.rings
        return waiting.all_waits(self._program, queues, rings, self._asking)

    def _try(self, asked: _Asked) -> None:
        """Answer a question, or keep it until what is lacking has changed."""
        if self.failure:
            answer: Any = CompileError(self.failure)
        else:
            blocked = asked.question.blocked_by()
            if blocked is not None:
                self._waiters[blocked].append(asked)
                return
            answer = asked.question.answer()
        self.heard += 1
        self._answered[asked.who] = self._asking.pop(asked.who)[0]
        asked.reply(answer)
