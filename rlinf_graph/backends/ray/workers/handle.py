"""What a call on a worker group gives at once: its results later, or the first cause of failure."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from rlinf_graph.backends.ray.workers.errors import Failure, WorkerError, death_of
from rlinf_graph.backends.ray.workers.host import Outcome
from rlinf_graph.backends.ray.workers.payload import thaw

GRACE_S = 1.0
"""After a failure, for the other ranks to end too: they are counted, or know the first cause."""
LOOK_S = 5.0
"""Without any answer until it is asked whether the processes are there at all."""


@dataclass(frozen=True)
class Durations:
    """Seconds that a method took in each process, without the way there and back."""

    by_rank: Mapping[int, float]

    @property
    def min(self) -> float:
        """Of the fastest rank."""
        return min(self.by_rank.values())

    @property
    def median(self) -> float:
        """Over the ranks."""
        return median(self.by_rank.values())

    @property
    def max(self) -> float:
        """Of the slowest rank."""
        return max(self.by_rank.values())


class Handle:
    """A call that has begun on some ranks of a group; can be awaited.

    No failure is raised before somebody waits. The first cause is raised, with the number of
    other ranks that failed too; it may be a rank of another group.
    """

    def __init__(
        self, group: str, hosts: Mapping[int, str], method: str,
        issued: float, references: Mapping[int, Any], collect: Callable[[list[Any]], Any],
        exchange: Any,
    ) -> None:  # fmt: skip
        """References of `Host.call` by rank; `collect` makes the result of the ranks' values."""
        self._group, self._hosts, self._method, self._issued = group, hosts, method, issued
        self._collect, self._exchange = collect, exchange
        self._pending = {reference: rank for rank, reference in references.items()}
        self._outcomes: dict[int, Outcome] = {}
        self._failures: list[Failure] = []
        self._came = time.monotonic()

    def done(self) -> bool:
        """Whether `wait` would give its result, or raise, without waiting for a rank."""
        self._look(0)
        if self._pending and time.monotonic() - self._came > LOOK_S:
            self._ask_whether_they_answer()
        return not self._pending or bool(self._failures)

    def wait(self, timeout: float | None = None) -> Any:
        """The result, as the method's dispatch says.

        Args:
            timeout: seconds; none by default. The call goes on after it: wait again.

        Raises:
            WorkerError: the first cause, when a rank fails or its process does not answer at all;
                the others may still be running.
            TimeoutError: with the ranks that have not answered.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.done():
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0:
                ranks = ", ".join(str(rank) for rank in sorted(self._pending.values()))
                late = f"`{self._method}` of `{self._group}`: no answer of rank {ranks}"
                raise TimeoutError(f"{late} within {timeout:g} s")
            self._look(min(left, LOOK_S))
        return self._result()

    def durations(self, timeout: float | None = None) -> Durations:
        """How long each rank took; waits as `wait` does, with its errors."""
        self.wait(timeout)
        return Durations({rank: o.seconds for rank, o in sorted(self._outcomes.items())})

    def __await__(self) -> Any:
        return self._wait_async().__await__()

    async def _wait_async(self) -> Any:
        ends = {reference: _end_of(reference) for reference in self._pending}
        while not await asyncio.to_thread(self.done):
            pending = [ends[reference] for reference in self._pending]
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED, timeout=LOOK_S)
        return await asyncio.to_thread(self._result)

    def _look(self, timeout: float) -> None:
        """Take what has come; wait for one at most so long."""
        if not self._pending:
            return
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout)
        if ready:
            self._came = time.monotonic()
            ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        for reference in ready:
            self._take(reference, self._pending.pop(reference))

    def _ask_whether_they_answer(self) -> None:
        """Nothing has come for a while: a process that does not answer at all is a failure."""
        self._came, ranks = time.monotonic(), sorted(self._pending.values())
        silent: Failure | None = None
        with contextlib.suppress(RayError):  # closed meanwhile, or nobody is there to be asked
            asked = self._exchange.silent.remote(self._group, ranks)
            silent = ray.get(asked, timeout=LOOK_S)
        if silent is not None:
            self._failures.append(replace(silent, method=self._method))

    def _take(self, reference: Any, rank: int) -> None:
        try:
            answer: Any = ray.get(reference)
        except RayActorError as error:
            answer = death_of(error, self._group, rank, self._hosts[rank], self._method)
        except RayTaskError as error:  # Ray itself failed to carry out the call
            cause = error.cause
            kind, host = type(cause).__name__, self._hosts[rank]
            answer = Failure(self._group, rank, host, self._method, kind, str(cause))
        if isinstance(answer, Failure):
            self._failures.append(answer)
        else:
            self._outcomes[rank] = answer

    def _result(self) -> Any:
        if self._failures:
            raise self._error()
        return self._collect([thaw(self._outcomes[rank].value) for rank in sorted(self._outcomes)])

    def _error(self) -> WorkerError:
        """The first cause; what is only a consequence of it is counted."""
        deadline = time.monotonic() + GRACE_S
        while self._pending and (left := deadline - time.monotonic()) > 0:
            self._look(left)
        first = min(self._failures, key=lambda failure: failure.weight)
        self._tell_seen(first.first)
        own = first.origin is None or any(f == first.first for f in self._failures)
        return WorkerError(first.first, len(self._failures) - int(own))

    def _tell_seen(self, cause: Failure) -> None:
        """From now on the caller knows: calls to come are not to fail for these causes again, nor
        for how ranks end that are still in this call."""
        numbers = [cause.number, *(failure.number for failure in self._failures)]
        late = [(self._group, rank) for rank in self._pending.values()]
        with contextlib.suppress(RayError):  # closed meanwhile: nobody is there to be told
            ray.get(self._exchange.seen.remote(numbers, late, self._issued, time.time()))


def _end_of(reference: Any) -> asyncio.Future[Any]:
    """Done when the call has ended, however."""
    made = asyncio.wrap_future(reference.future())
    made.add_done_callback(lambda end: end.cancelled() or end.exception())  # `_take` raises it
    return made
