"""A rank's way to the board."""

from __future__ import annotations

import time
from typing import Any

import ray

from rlinf_graph.backends.ray.post import Address, Client
from rlinf_graph.backends.ray.state import Call

HOLD_S = 0.001
"""Seconds for which what is told may wait for more to be told: about what a message costs all who
take part in it."""


class Line:
    """Calls of the board: those that wait for an answer, and those that only tell.

    What is told goes out together, with the next question or before the rank works on for long.

    Attributes:
        sent: how many messages; read from any thread.
    """

    def __init__(self, board: Any, address: Address, who: tuple[str, int]) -> None:
        """Nothing has been told. `who` is the rank."""
        self._board, self._address, self._who = board, address, who
        self._post = Client(address)
        self._told: list[Call] = []
        self._refers = False
        self._since = 0.0
        self.sent = 0

    def beside(self, name: str) -> Line:
        """A line for another thread of the rank; the board knows it by that name."""
        group, rank = self._who
        return Line(self._board, self._address, (f"{name} of {group}", rank))

    def ask(self, method: str, *arguments: Any) -> Any:
        """Wait for what the board answers.

        Raises:
            CompileError: the cause, when the run has failed.
            Lost, RayError: when the board is gone.
        """
        if self._refers:
            self.flush()
        told, self._told = self._told, []
        self.sent += 1
        self._post.send(self._who, told, (method, arguments))
        kind, answer = self._post.receive()
        if kind == "error":
            raise answer
        if kind == "references":
            return ray.get(self._board.answer.remote(method, arguments))
        return answer

    def tell(self, method: str, *arguments: Any, refers: bool = False) -> None:
        """Go on without an answer. `refers` says that there are references among the arguments."""
        if not self._told:
            self._since = time.monotonic()
        self._told.append((method, arguments))
        self._refers |= refers

    def flush_before(self, seconds: float) -> None:
        """Send what has been told, if it would wait too long during work of so many seconds.

        Raises:
            Lost, RayError: when the board is gone.
        """
        if self._told and time.monotonic() + seconds > self._since + HOLD_S:
            self.flush()

    def flush(self) -> None:
        """Send what has been told.

        Raises:
            Lost, RayError: when the board is gone.
        """
        if not self._told:
            return
        told, self._told = self._told, []
        if self._refers:
            self._refers = False
            ray.get(self._board.take_in.remote(told))
        else:
            self.sent += 1
            self._post.send(self._who, told, None)

    def close(self) -> None:
        """Wait until the board has heard everything, and tell nothing more."""
        self.ask("nothing")
        self.hang_up()

    def hang_up(self) -> None:
        """Neither tell nor hear anything more; a thread that waits for an answer gets `Lost`."""
        self._post.close()
