"""Sends and receives that have begun."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import ray
from ray.exceptions import GetTimeoutError

from rlinf_graph.backends.ray.workers.errors import MismatchError, WorkerError
from rlinf_graph.backends.ray.workers.matching import Problem

ERRORS: dict[str, type[Exception]] = {
    "mismatch": MismatchError,
    "timeout": TimeoutError,
    "closed": ConnectionError,
}


def raise_problem(problem: Problem) -> NoReturn:
    """Raise at this end what the exchange has found.

    Raises:
        MismatchError: the ends do not agree.
        TimeoutError: the other end did not come; says who waits for whom.
        ConnectionError: the other end's group was closed.
        WorkerError: the other end failed; with the first cause.
    """
    if problem.failure is not None:
        raise WorkerError(problem.failure)
    raise ERRORS[problem.kind](problem.text)


class Transfer:
    """A handle of one or several sends, or of a receive; can be awaited."""

    def __init__(self, references: list[Any], finish: Callable[[Any], Any]) -> None:
        """Ray's references of the answers; `finish` makes the result of the first one."""
        self._references, self._finish = references, finish
        self._ended = False
        self._result: Any = None

    def done(self) -> bool:
        """Whether `wait` would give its result, or raise its error, at once."""
        n = len(self._references)
        return self._ended or len(ray.wait(self._references, num_returns=n, timeout=0)[0]) == n

    def wait(self, timeout: float | None = None) -> Any:
        """The value received; None for a send, when every receiver has it.

        Args:
            timeout: seconds; by default the transfer's own timeout ends the wait.

        Raises:
            TimeoutError: it goes on; wait again.
            Exception: what `raise_problem` lists.
        """
        if not self._ended:
            try:
                answers = ray.get(self._references, timeout=timeout)
            except GetTimeoutError:
                raise TimeoutError(f"the transfer goes on after {timeout:g} s") from None
            self._end(answers)
        return self._result

    def __await__(self) -> Any:
        return self._wait_async().__await__()

    async def _wait_async(self) -> Any:
        if not self._ended:
            self._end(list(await asyncio.gather(*self._references)))
        return self._result

    def _end(self, answers: list[Any]) -> None:
        for answer in answers:
            if isinstance(answer, Problem):
                raise_problem(answer)
        self._result, self._ended = self._finish(answers[0]), True
