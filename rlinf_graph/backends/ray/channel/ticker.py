"""One thread for each process that sends what has waited long enough."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

LINGER_S = 0.002
"""Seconds that an item may wait for others to share its message."""

IDLE_S = 0.02
"""Seconds after which leases and items that are not used go back."""


class Ticking(Protocol):
    """A channel's end in this process."""

    def tick(self, now: float) -> bool:
        """Send what is due; whether something is left to be sent later. Never waits."""
        ...


class Ticker:
    """Calls ends that have something to send, again and again."""

    def __init__(self) -> None:
        """No thread yet."""
        self._busy: weakref.WeakSet[Ticking] = weakref.WeakSet()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, end: Ticking) -> None:
        """Call an end from now on, until it says that nothing is left."""
        with self._lock:
            self._busy.add(end)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="channels", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(LINGER_S)
            self._wake.clear()
            with self._lock:
                ends = list(self._busy)
                self._busy.clear()
            now = time.monotonic()
            again = [end for end in ends if end.tick(now)]
            with self._lock:
                self._busy.update(again)
            if again:
                self._wake.set()
            del ends, again


TICKER = Ticker()
"""Of this process."""
