"""What the ranks of one process tell each other, without leaving it.

It knows the edges whose two ends are in the process, and the rings of devices that only its ranks
use; all others are the board's. Batches are handed over as they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray import waiting
from rlinf_graph.backends.ray.state import Call, State
from rlinf_graph.backends.ray.waiting import Wait
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.program import Program


class Nearby:
    """State that threads share.

    Attributes:
        heard: how often something has changed.
    """

    def __init__(self, program: Program, places: Collection[waiting.Place]) -> None:
        """Nothing has come. `places` are the ranks of this process."""
        inside = [g.name for g in program.groups
                  if all((g.name, rank) in places for rank in range(g.ranks))]  # fmt: skip
        self._state = State(program, inside, Kept(0, {}))
        self.heard = 0
        self._program = program
        self._changed = threading.Condition()
        self._failure: tuple[Diagnostic, ...] = ()
        self._asking: dict[waiting.Place, tuple[Call, float]] = {}

    def knows(self, name: str) -> bool:
        """Whether an edge or a ring is in this process."""
        return name in self._state.queues or name in self._state.rings

    def tell(self, method: str, *arguments: Any) -> None:
        """Take in what a rank tells."""
        with self._changed:
            getattr(self._state, method)(*arguments)
            self._notify()

    def ask(
        self, who: waiting.Place, method: str, *arguments: Any, first: Callable[[], None]
    ) -> Any:
        """Wait for an answer; `first` is called before, where the rank has to wait.

        Raises:
            CompileError: when a rank of this process has failed.
        """
        question = getattr(self._state, method)(*arguments)
        with self._changed:
            if not self._failure and question.blocked_by() is None:
                self._notify()
                return question.answer()
        first()
        with self._changed:
            self._asking[who] = (method, arguments), time.monotonic()
            self._changed.wait_for(lambda: bool(self._failure) or question.blocked_by() is None)
            del self._asking[who]
            if self._failure:
                raise CompileError(self._failure)
            self._notify()
            return question.answer()

    def fail(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        """The run has failed."""
        with self._changed:
            self._failure = self._failure or diagnostics
            self._notify()

    def waits(self) -> list[Wait]:
        """Who waits for whom now."""
        with self._changed:
            queues, rings = self._state.queues, self._state.rings
            return waiting.all_waits(self._program, queues, rings, self._asking)

    def _notify(self) -> None:
        self.heard += 1
        self._changed.notify_all()
