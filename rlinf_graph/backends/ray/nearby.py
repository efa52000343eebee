"""What the ranks of one process tell each other, without leaving it.

It knows the edges whose two ends are in the process, and the rings of devices that only its ranks
use; all others are the board's. Batches are handed over as they are.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any
from weakref import WeakValueDictionary

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray import waiting
from rlinf_graph.backends.ray.desk import Desk
from rlinf_graph.backends.ray.waiting import Wait
from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.program import Program


class Nearby:
    """A desk that threads share.

    Attributes:
        opened: batches from other processes that are in use here, by name.
    """

    def __init__(self, program: Program, places: Collection[waiting.Place]) -> None:
        """Nothing has come. `places` are the ranks of this process."""
        inside = [g.name for g in program.groups
                  if all((g.name, rank) in places for rank in range(g.ranks))]  # fmt: skip
        self._desk = Desk(program, inside, Kept(0, defaultdict(lambda: frozenset({1}))))
        self._lock = threading.Lock()
        self.opened: WeakValueDictionary[tuple[str, int, int], Batch] = WeakValueDictionary()

    @property
    def heard(self) -> int:
        """How often something has changed."""
        return self._desk.heard

    def knows(self, name: str) -> bool:
        """Whether an edge or a ring is in this process."""
        return self._desk.knows(name)

    def tell(self, method: str, *arguments: Any) -> None:
        """Take in what a rank tells."""
        with self._lock:
            self._desk.tell(method, arguments)

    def ask(
        self, who: waiting.Place, method: str, *arguments: Any, first: Callable[[], None]
    ) -> Any:
        """Wait for an answer; `first` is called before, where the rank has to wait.

        Raises:
            CompileError: when a rank of this process has failed.
        """
        answers: list[Any] = []
        come = threading.Lock()
        come.acquire()

        def reply(answer: Any) -> None:
            answers.append(answer)
            come.release()

        with self._lock:
            self._desk.ask(who, (method, arguments), reply)
        if not answers:
            first()
            come.acquire()
        if isinstance(answers[0], CompileError):
            raise answers[0]
        return answers[0]

    def fail(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        """The run has failed."""
        with self._lock:
            self._desk.fail(diagnostics)

    def waits(self) -> list[Wait]:
        """Who waits for whom now."""
        with self._lock:
            return self._desk.waits()
