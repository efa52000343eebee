"""The exchange that the worker groups of this process share."""

from __future__ import annotations

import threading
from typing import Any

import ray

from rlinf_graph.backends.ray.workers.exchange import Exchange

WAITS = 100_000
"""Operations that may wait at the same time: each is a coroutine of one event loop."""


class _Meeting:
    """Started for a driver's first worker group, ended with its last; a worker is given one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exchange: Any = None
        self._session: tuple[str, str] | None = None
        self._users, self._given = 0, False

    def acquire(self) -> Any:
        """The exchange's handle, for one more group."""
        with self._lock:
            context = ray.get_runtime_context()
            session = (context.gcs_address, context.get_job_id())
            if self._exchange is None or (self._session != session and not self._given):
                made = ray.remote(Exchange).options(num_cpus=0, max_concurrency=WAITS)
                self._exchange, self._session, self._users = made.remote(), session, 0
            self._users += 1
            return self._exchange

    def release(self, exchange: Any) -> None:
        """A group is closed."""
        with self._lock:
            if exchange is not self._exchange or self._given:
                return
            self._users -= 1
            if self._users == 0:
                ray.kill(self._exchange)
                self._exchange = None

    def give(self, exchange: Any) -> None:
        """From now on this process, a worker's, uses its group's exchange for groups of its own."""
        with self._lock:
            self._exchange, self._given = exchange, True


meeting = _Meeting()
