"""What the ranks of one process tell each other, without leaving it.

It knows the edges whose two ends are in the process, and the rings of devices that only its ranks
use; all others are the board's. Batches are handed over as they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from rlinf_graph.backends.edges import Rows
from rlinf_graph.backends.ray import waiting
from rlinf_graph.backends.ray.state import Call, Part, Place, queues_of, rings_of
from rlinf_graph.backends.ray.waiting import Wait
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.program import Program


class Nearby:
    """State that threads share. Those who wait first send what they have told the board.

    Attributes:
        heard: how often something has changed.
    """

    def __init__(self, program: Program, places: Collection[waiting.Place]) -> None:
        """Nothing has come. `places` are the ranks of this process."""
        inside = [g.name for g in program.groups
                  if all((g.name, rank) in places for rank in range(g.ranks))]  # fmt: skip
        self.queues, self.rings = queues_of(program, inside), rings_of(program, inside)
        self.heard = 0
        self._program = program
        self._changed = threading.Condition()
        self._failure: tuple[Diagnostic, ...] = ()
        self._asking: dict[waiting.Place, tuple[Call, float]] = {}

    def room(self, who: waiting.Place, places: Sequence[Place], first: Callable[[], None]) -> None:
        """See `Board.room`. `first` is called before the rank waits, where it has to."""
        queues = [(self.queues[edge], moment) for edge, moment in places]

        def open_all() -> None:
            for queue, moment in queues:
                queue.open(moment)

        self._until(lambda: all(queue.has_room(moment) for queue, moment in queues),
                    open_all, who, ("room", (places,)), first)  # fmt: skip

    def put(self, place: Place, part: Part) -> None:
        """See `Board.put`."""
        with self._changed:
            self.queues[place[0]].put(place[1], part)
            self._notify()

    def get(
        self, who: waiting.Place, wanted: Mapping[Place, Rows], first: Callable[[], None]
    ) -> dict[Place, dict[int, Part]]:
        """See `Board.get`; `first` as in `room`."""
        queues = [(self.queues[edge], moment, rows) for (edge, moment), rows in wanted.items()]
        found: dict[Place, dict[int, Part]] = {}

        def take() -> None:
            for queue, moment, rows in queues:
                found[queue.channel.edge, moment] = queue.holding(moment, rows)

        self._until(lambda: all(queue.has(moment, rows) for queue, moment, rows in queues),
                    take, who, ("get", (wanted,)), first)  # fmt: skip
        return found

    def free(self, place: Place) -> None:
        """See `Board.free`."""
        with self._changed:
            self.queues[place[0]].free(place[1])
            self._notify()

    def acquire(
        self, who: waiting.Place, ring: str, position: int, first: Callable[[], None]
    ) -> None:
        """See `Board.acquire`; `first` as in `room`."""
        state = self.rings[ring]
        self._until(lambda: state.may(position, who), lambda: state.take(who),
                    who, ("acquire", (who, ring, position)), first)  # fmt: skip

    def release(self, ring: str) -> None:
        """See `Board.release`."""
        with self._changed:
            self.rings[ring].release()
            self._notify()

    def fail(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        """The run has failed."""
        with self._changed:
            self._failure = self._failure or diagnostics
            self._notify()

    def waits(self) -> list[Wait]:
        """Who waits for whom now."""
        with self._changed:
            return waiting.all_waits(self._program, self.queues, self.rings, self._asking)

    def _until(
        self,
        ready: Callable[[], bool],
        then: Callable[[], None],
        who: waiting.Place,
        question: Call,
        first: Callable[[], None],
    ) -> None:
        """Wait for a condition and do something while it holds; a failure is raised instead."""
        with self._changed:
            if not self._failure and ready():
                then()
                self._notify()
                return
        first()
        with self._changed:
            self._asking[who] = question, time.monotonic()
            self._changed.wait_for(lambda: bool(self._failure) or ready())
            del self._asking[who]
            if self._failure:
                raise CompileError(self._failure)
            then()
            self._notify()

    def _notify(self) -> None:
        self.heard += 1
        self._changed.notify_all()
