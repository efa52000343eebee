"""A line to a board that is in this process, to publish weights by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray.desk import Desk
from rlinf_graph.backends.ray.post import Lost
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.program import Program


class Nearer:
    """A line to a desk in this process."""

    def __init__(self) -> None:
        kept = Kept(3, {"policy": frozenset({1, 2})})
        self._desk = Desk(Program("p", (), ()), (), kept)
        self._asked, self._answer = threading.Condition(), list[Any]()
        self._open = True

    def ask(self, method: str, *arguments: Any) -> Any:
        with self._asked:
            self._answer = []
            self._desk.ask(("news", 0), (method, arguments), self._answer.append)
            self._asked.wait_for(lambda: bool(self._answer) or not self._open)
        if not self._open:
            raise Lost("hung up")
        if isinstance(self._answer[0], CompileError):
            raise self._answer[0]
        return self._answer[0]

    def fail(self) -> None:
        with self._asked:
            self._desk.fail((Diagnostic("RG0607", "the trainer failed"),))
            self._asked.notify_all()

    def publish(self, version: int) -> None:
        """Weights that can be told from those of other versions."""
        with self._asked:
            self._desk.tell("publish", ("policy", version, [[b"%d" % version]]))
            self._asked.notify_all()

    def hang_up(self) -> None:
        with self._asked:
            self._open = False
            self._asked.notify_all()


def until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    done = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if holds():
            return True
        done.wait(0.005)
    return False
