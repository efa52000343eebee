"""Turns silence into a diagnostic: a process that does not answer, ranks that wait for one another
and, where the user has set a limit, a run in which nothing happens.

It asks every worker once a second what its ranks are in, and the board who waits. Neither a long
computation nor a wait for it is an error: a rollout may take half an hour.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rlinf_graph.backends.ray.waiting import (
    Doing,
    Place,
    Pulse,
    Wait,
    at_reduction,
    behind,
    cycle,
    listed,
    named,
)
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic, fail
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.program import Program

LOOK_S = 1.0
"""Seconds between looks."""
LEAP_S = 10.0
"""What a longer time between looks counts: this process was stopped itself, as a laptop is."""
BOARD_S = 120.0
"""Seconds for an answer of the board, which answers between two messages."""
DEAF_S = 60.0
"""Seconds without an answer after which a process that others wait for is taken for stuck."""
NOTE_S = 60.0
"""Seconds of silence until a note says who works; then after twice as many, and so on."""

MOST = 16
"""Lines of a note."""


@dataclass(frozen=True)
class Seat:
    """Where a worker lives: the id of its Ray node, its process id there, and the address."""

    node: str
    process: int
    host: str = ""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Watchdog:
    """Looks after the workers of one run, in the process that started it."""

    def __init__(
        self, graph: Graph, program: Program, places: Mapping[int, list[Place]], board: Any,
        patience_s: float | None,
    ) -> None:  # fmt: skip
        """`places` are the ranks of each worker; `patience_s` limits a silence, none by default."""
        self._graph, self._program, self._places, self._board = graph, program, places, board
        self._patience_s = patience_s
        self._seats: Mapping[int, Seat] = {}
        self._workers: Mapping[int, Any] = {}
        self._looked = time.monotonic()
        self._clock = self._changed = 0.0
        self._note_at = NOTE_S
        self._pulses: dict[Any, int] = {}
        self._sent: dict[int, float] = {}
        self._doing: dict[Place, Doing] = {}
        self._near: dict[int, Pulse] = {}
        self._since: dict[Place, float] = {}
        self._before: Any = None

    def begin(self, workers: Mapping[int, Any], seats: Mapping[int, Seat]) -> None:
        """The workers have loaded, and their ranks begin."""
        self._workers, self._seats = workers, seats
        self.of_board("asking")  # it has loaded, too
        self._tick()
        self._quiet_since_now()

    def each(self, asked: Mapping[Any, int], doing: str) -> Iterator[tuple[int, Any]]:
        """Workers and what they answer, as the answers come.

        Args:
            asked: workers by the references of their answers.
            doing: what they are about, such as `loads`.

        Raises:
            CompileError: what `gone` says, when a worker cannot answer.
        """
        pending = list(asked)
        self._tick()
        self._quiet_since_now()
        while pending:
            done, pending = ray.wait(pending, timeout=LOOK_S)
            for reference in done:
                try:
                    yield asked[reference], ray.get(reference)
                except RayError as error:
                    raise self.gone(self._places[asked[reference]], error) from error
            self._tick()
            if done:
                self._quiet_since_now()
            late = [place for reference in pending for place in self._places[asked[reference]]]
            self._note([f"{named(place)} {doing}" for place in late])

    def look(self, running: Collection[Place]) -> None:
        """See whether the run goes on; does nothing more often than once a second.

        Args:
            running: the ranks that are not done.

        Raises:
            CompileError: RG0610 for a process that does not answer, RG0603 for ranks that wait for
                one another, RG0611 after more silence than the user allows.
        """
        if time.monotonic() - self._looked < LOOK_S or not running:
            return
        self._tick()
        fresh = self._listen()
        heard, asking = self.of_board("asking")
        inside = {number: pulse.heard for number, pulse in self._near.items()}
        now = heard, inside, dict(asking)
        if self._before is None or now[:2] != self._before[:2]:
            self._quiet_since_now()
        waits = (wait for pulse in self._near.values() for wait in pulse.waits)
        asking |= {wait.who: wait.seconds for wait in waits}
        deaf = [n for n, sent in self._sent.items() if self._clock - sent > DEAF_S]
        for number in deaf:
            self._require_answer(number, running, asking)
        if fresh and now == self._before:
            self._require_motion(running, heard)
        self._before = now
        self._ask_pulses(running)
        self._say_who_works(running, asking)

    def gone(self, places: Sequence[Place], error: RayError) -> CompileError:
        """RG0609 for a process that is gone, or the error that its worker raised.

        Args:
            places: its ranks that were not done.
            error: what Ray says.
        """
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, CompileError):
            return cause
        _heard, asking = self.of_board("asking")
        place = next((place for place in places if place not in asking), places[0])
        number, node = self._number(place), self._graph.node(place[0])
        what = "its process died" if isinstance(error, RayActorError) else f"{cause}"
        message = f"the worker of {named(place)} is gone: {what}"
        notes = [f"{self._seats[number]}"] if number in self._seats else []
        notes += self._last_seen(place)
        said = [line for line in str(error).splitlines() if line.strip()][-1:]
        notes += [line.partition(" Some common causes")[0] for line in said]
        return CompileError([Diagnostic("RG0609", message, node.span, notes=tuple(notes))])

    def of_board(self, method: str, *arguments: Any) -> Any:
        """What the board answers.

        Raises:
            CompileError: the first cause, when the run has failed; RG0609 or RG0610 when the board
                itself is gone or does not answer.
        """
        try:
            return ray.get(getattr(self._board, method).remote(*arguments), timeout=BOARD_S)
        except RayActorError as error:
            told = str(error).splitlines()[-1:]
            raise fail("RG0609", "the process that hands out turns died", notes=tuple(told)) from (
                error
            )
        except GetTimeoutError as error:
            message = f"the process that hands out turns has not answered for {BOARD_S:.0f} s"
            raise fail("RG0610", message) from error

    def _tick(self) -> None:
        now = time.monotonic()
        self._clock += min(now - self._looked, LEAP_S)
        self._looked = now

    def _quiet_since_now(self) -> None:
        self._changed, self._note_at = self._clock, NOTE_S

    def _listen(self) -> bool:
        """Take in answers; whether all have come."""
        pulses = list(self._pulses)
        ready = ray.wait(pulses, num_returns=len(pulses), timeout=0)[0] if pulses else []
        for reference in ready:
            number = self._pulses.pop(reference)
            del self._sent[number]
            try:
                told: Pulse = ray.get(reference)
            except RayError:  # a process that is gone ends the calls of its ranks, too
                continue
            self._near[number] = told
            for place, doing in told.doing.items():
                old = self._doing.get(place)
                if old is None or (old.kind, old.at) != (doing.kind, doing.at):
                    self._since[place] = self._clock
                    self._quiet_since_now()
                self._doing[place] = doing
        return not self._pulses

    def _ask_pulses(self, running: Collection[Place]) -> None:
        for number, worker in self._workers.items():
            if number not in self._sent and any(place in running for place in self._places[number]):
                self._pulses[worker.pulse.remote()] = number
                self._sent[number] = self._clock

    def _require_answer(
        self, number: int, running: Collection[Place], asking: Mapping[Place, float]
    ) -> None:
        """A process is stuck: that is an error when somebody waits for it, or nobody works."""
        mine = [place for place in self._places[number] if place in running]
        if not mine:
            return
        waits = self._waits(running, deaf=mine)
        waiting = {wait.who for wait in waits} | set(asking)
        working = [place for place in running if place not in waiting and place not in mine]
        places = [place for place in mine if place not in asking] or mine
        place = max(places, key=lambda place: len(behind(waits, place)))
        for_it = behind(waits, place)
        if working and not for_it:
            return
        seconds, seat = self._clock - self._sent[number], self._seats[number]
        raise fail(
            "RG0610",
            f"the worker of {named(place)} has not answered for {seconds:.0f} s: {seat}",
            self._graph.node(place[0]).span,
            label="declared here",
            notes=(*self._last_seen(place), *listed(for_it)),
            help=(
                f"on {seat.host}, `py-spy dump --pid {seat.process}` shows where it stands: it is "
                "stopped, or C code holds the interpreter's lock",
            ),
        )

    def _require_motion(self, running: Collection[Place], heard: Mapping[Place, int]) -> None:
        """Everything that was sent has come, and nothing has changed: somebody has to work."""
        waits = self._waits(running)
        still = {wait.who for wait in waits}
        if not still.issuperset(running):
            return
        sent = {place: doing.sent for place, doing in self._doing.items()}
        if any(sent.get(place) != heard.get(place, 0) for place in running):
            return
        found = cycle(waits)
        name = self._program.name
        what = ": its ranks wait for one another" if found else ""
        span = self._graph.node((found or waits)[0].who[0]).span
        raise fail("RG0603", f"program `{name}` cannot go on{what}", span,
                   notes=listed(found or waits))  # fmt: skip

    def _say_who_works(self, running: Collection[Place], asking: Mapping[Place, float]) -> None:
        if self._clock - self._changed < min(self._note_at, self._patience_s or self._note_at):
            return
        waits = self._waits(running)
        waiting = {wait.who for wait in waits} | set(asking)
        working = sorted(place for place in running if place not in waiting)
        working.sort(key=lambda place: -len(behind(waits, place)))
        lines = [f"{named(place)} is in {self._in(place)}" for place in working]
        lines += listed(waits)
        silence, limit = self._clock - self._changed, self._patience_s
        if limit is not None and silence >= limit:
            raise fail(
                "RG0611",
                f"nothing has happened for {silence:.0f} s, and patience is {limit:g} s",
                self._graph.node((working or sorted(running))[0][0]).span,
                label="this is worked on",
                notes=tuple(lines),
                help=("more patience, where so long is right: run --patience SECONDS",),
            )
        self._note(lines)

    def _note(self, lines: Sequence[str]) -> None:
        """Tell the user after a silence, after twice as long a one, and so on."""
        silence = self._clock - self._changed
        if silence >= self._note_at and lines:
            self._note_at *= 2
            more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
            text = "\n  ".join([f"nothing has happened for {silence:.0f} s:", *lines[:MOST], *more])
            print(text, file=sys.stderr, flush=True)

    def _waits(self, running: Collection[Place], deaf: Collection[Place] = ()) -> list[Wait]:
        since = {place: self._clock - since for place, since in self._since.items()}
        doing = {place: self._doing[place] for place in running if place in self._doing}
        found: list[Wait] = self.of_board("waits")
        found += [wait for pulse in self._near.values() for wait in pulse.waits]
        found += at_reduction(self._program, doing, since, deaf)
        return [wait.narrowed(self._doing, running) for wait in found if wait.who in running]

    def _last_seen(self, place: Place) -> list[str]:
        """What a rank was in when it was asked last, and what it has been given since then."""
        given = self.of_board("answered", place)
        seen = [f"last seen in {self._in(place)}"] if place in self._doing else []
        return seen + ([f"the last that it was given: {given}"] if given else [])

    def _in(self, place: Place) -> str:
        if place not in self._doing:
            return "its first instruction"
        return f"{self._doing[place]} since {self._clock - self._since[place]:.0f} s"

    def _number(self, place: Place) -> int:
        return next(number for number, places in self._places.items() if place in places)
