"""One thread samples, step by step; others do something in between two steps.

Where several processes hold a model together, each has a scheduler of its own, and all have to take
the same steps: what happens in between has to happen between the same two steps in all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """Who may use an engine now.

    Args:
        agree: the largest of the numbers that the processes of a replica give, each its own;
            None where there is one process.
    """

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self._agree = agree
        self._changed = threading.Condition()
        self._counting = threading.Lock()
        self._sampling = self._resting = False
        self._asked = 0  # how many times something was to happen in between
        self._admitted = 0  # which of these have happened in all processes before the next step
        self._done = 0
        self.asleep = False

    def begin(self) -> None:
        """Become the thread that samples.

        Raises:
            RuntimeError: another one is, this one has not finished a stream, or the engine sleeps.
        """
        with self._changed:
            if self.asleep:
                raise RuntimeError("the engine sleeps: wake it before it samples")
            if self._sampling:
                raise RuntimeError("the engine is sampling already: finish or close that first")
            self._sampling = True

    def end(self, last: Callable[[], None]) -> None:
        """Sample no more; `last` is done first, and before anything else happens."""
        with self._changed:
            try:
                last()
            finally:
                self._sampling = False
                self._changed.notify_all()

    @contextmanager
    def rest(self) -> Iterator[None]:
        """No step is taken until the sampling thread comes back: it has told what it found."""
        with self._changed:
            self._resting = True
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._resting = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step, before which everything happens that was asked for, in all processes."""
        while True:
            target = self._asked if self._agree is None else self._agree(self._asked)
            with self._changed:
                self._admitted = target
                self._changed.notify_all()
                self._changed.wait_for(lambda target=target: self._done >= target)
                if not self.asleep:
                    yield
                    return
                self._changed.wait_for(lambda target=target: self._asked > target)

    @contextmanager
    def between(self) -> Iterator[None]:
        """Something that happens while no step is taken."""
        with self._counting:
            self._asked += 1
            number = self._asked
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._admits(number))
            try:
                yield
            finally:
                self._done += 1
                self._changed.notify_all()

    def _admits(self, number: int) -> bool:
        if self._done != number - 1:
            return False
        free = self._agree is None or not self._sampling or self._resting
        return free or number <= self._admitted
