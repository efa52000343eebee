"""Silence becomes a diagnostic: a real board, and processes that say what their ranks are in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray import watchdog
from rlinf_graph.backends.ray.board import Board
from rlinf_graph.backends.ray.post import Client
from rlinf_graph.backends.ray.waiting import Doing, Place, Pulse
from rlinf_graph.backends.ray.watchdog import Seat, Watchdog
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.position import Position

FILE = Path(__file__).parents[2] / "plans" / "faulty.py"
DATASET, MAKER, READER = ("dataset", 0), ("Maker", 0), ("Reader", 0)
PLACES = {-1: [DATASET, READER], 0: [MAKER]}
ALL = {DATASET, MAKER, READER}
ROWS = np.arange(4)
DEAF_S = 5.0
"""Here; a minute elsewhere."""
FULL = ("room", ([("dataset -> Maker.prompts", (0,))],))
NO_PROMPTS = ("get", ({("dataset -> Maker.prompts", (0,)): (ROWS, frozenset[int]())},))
NO_PARCELS = ("get", ({("Maker -> Reader.parcels", (0,)): (ROWS, frozenset[int]())},))

pytestmark = pytest.mark.timeout(120)


@ray.remote(num_cpus=0)
class Ranks:
    """A worker's process, whose ranks are in what it is told."""

    def __init__(self) -> None:
        self.doing: dict[Place, Doing] = {}

    def set(self, doing: dict[Place, Doing]) -> int:
        self.doing.update(doing)
        return os.getpid()

    def pulse(self) -> Pulse:
        return Pulse(self.doing, 0, [])


@dataclass
class Run:
    """A run that only waits: what ranks ask is asked here."""

    dog: Watchdog
    board: Any
    workers: dict[int, Any]
    lines: list[Client]
    processes: dict[int, int]

    def ask(self, **questions: Any) -> None:
        """Let ranks ask the board."""
        address = ray.get(self.board.open.remote())
        for name, question in questions.items():
            number = next(n for n, places in PLACES.items() if (name, 0) in places)
            said = Doing("Run", Position(0, 0), sent=1)
            ray.get(self.workers[number].set.remote({(name, 0): said}))
            self.lines.append(Client(address))
            self.lines[-1].send((name, 0), [], question)

    def look(self, seconds: float, running: set[Place] = ALL) -> Diagnostic | None:
        """Look for some seconds of the watchdog's clock; the error, if one comes."""
        end = self.dog._clock + seconds
        while self.dog._clock < end:
            try:
                self.dog.look(running)
            except CompileError as error:
                (found,) = error.diagnostics
                return found
            time.sleep(0.02)  # between looks, not instead of one
        return None


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    pipeline, _ = load_pipeline(str(FILE))
    return compile_pipeline(pipeline, "1xcpu")


@pytest.fixture(scope="module")
def workers(ray_nodes: list[str]) -> Iterator[dict[int, Any]]:
    """Processes that no test ends."""
    started: dict[int, Any] = {number: Ranks.remote() for number in PLACES}
    yield started
    for worker in started.values():
        ray.kill(worker)


@pytest.fixture
def made(
    workers: dict[int, Any], compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Edges without any room; the processes are in their first iteration."""
    monkeypatch.setattr(watchdog, "LOOK_S", 0.1)
    monkeypatch.setattr(watchdog, "NOTE_S", 3.0)
    monkeypatch.setattr(watchdog, "LEAP_S", 0.5)
    program = compiled.program
    channels = tuple(replace(channel, capacity=0) for channel in program.channels)
    program = replace(program, channels=channels)
    board: Any = (
        ray.remote(Board).options(num_cpus=0, max_concurrency=20).remote(program, Kept(0, {}))
    )
    doing = {n: {p: Doing("Run", Position(0, 0)) for p in places} for n, places in PLACES.items()}
    processes: dict[int, Any] = {n: ray.get(w.set.remote(doing[n])) for n, w in workers.items()}
    dog = Watchdog(compiled.graph, program, PLACES, board, None)
    dog.begin(workers, {n: Seat("", process, "host-a") for n, process in processes.items()})
    yield Run(dog, board, workers, [], processes)
    ray.kill(board)


def test_ranks_that_wait_for_one_another_end_at_once_with_the_cycle(made: Run) -> None:
    made.ask(dataset=FULL, Maker=NO_PROMPTS, Reader=NO_PARCELS)
    found = made.look(30)
    assert found is not None
    assert found.code == "RG0603"
    assert "its ranks wait for one another" in found.message
    assert len(found.notes) == 2
    told = "\n".join(found.notes)
    assert "`dataset` rank 0 waits for room in `dataset -> Maker.prompts`" in told
    assert "of `Maker` rank 0" in told
    assert "`Maker` rank 0 waits for samples of `dataset -> Maker.prompts`, iteration 0" in told
    assert found.span is not None
    assert found.span.line > 1


def test_what_is_on_its_way_is_no_deadlock(made: Run) -> None:
    made.ask(dataset=FULL, Maker=NO_PROMPTS, Reader=NO_PARCELS)
    ray.get(made.workers[0].set.remote({MAKER: Doing("Recv", Position(0, 0), sent=2)}))
    assert made.look(3) is None


def test_a_producer_that_has_ended_is_named(made: Run) -> None:
    made.ask(Maker=NO_PROMPTS, Reader=NO_PARCELS)
    found = made.look(30, {MAKER, READER})
    assert found is not None
    assert found.code == "RG0603"
    assert any("of which there is nobody left" in note for note in found.notes)


def test_a_process_that_does_not_answer_is_named_with_who_waits(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "DEAF_S", DEAF_S)
    made.ask(Reader=NO_PARCELS)
    while MAKER not in made.dog._doing:
        assert made.look(1) is None
    process = made.processes[0]
    os.kill(process, signal.SIGSTOP)
    try:
        found = made.look(40)
    finally:
        os.kill(process, signal.SIGCONT)
    assert found is not None
    assert found.code == "RG0610"
    assert "the worker of `Maker` rank 0 has not answered for" in found.message
    assert f"process {process} on host-a" in found.message
    assert any("last seen in `Run` of iteration 0 since" in note for note in found.notes)
    assert any("`Reader` rank 0 waits for samples" in note for note in found.notes)
    assert found.span is not None
    assert "Maker(kind=kind" in found.span.source


def test_nobody_needs_an_answer_while_others_work(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "DEAF_S", DEAF_S)
    os.kill(made.processes[0], signal.SIGSTOP)
    try:
        assert made.look(8) is None
    finally:
        os.kill(made.processes[0], signal.SIGCONT)


def test_long_work_is_noted_and_no_error(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    made.ask(Reader=NO_PARCELS)
    assert made.look(8) is None
    told = capsys.readouterr().err
    assert "nothing has happened for" in told
    assert "`Maker` rank 0 is in `Run` of iteration 0 since" in told
    assert "`Reader` rank 0 waits for samples of `Maker -> Reader.parcels`, iteration 0" in told


def test_patience_ends_a_silence(made: Run) -> None:
    made.dog._patience_s = 2.0
    made.ask(dataset=FULL, Reader=NO_PARCELS)
    found = made.look(40)
    assert found is not None
    assert found.code == "RG0611"
    assert found.notes[0].startswith("`Maker` rank 0 is in `Run` of iteration 0")
    assert any("`dataset` rank 0 waits for room" in note for note in found.notes)
    assert found.span is not None
    assert "Maker(kind=kind" in found.span.source


def test_who_gets_on_tries_no_patience(made: Run) -> None:
    made.dog._patience_s = 4.0
    for step in range(1, 17):
        ray.get(made.workers[0].set.remote({MAKER: Doing("Run", Position(step, 0))}))
        assert made.look(0.5) is None


def test_a_board_that_is_gone_is_an_error_that_says_so(made: Run) -> None:
    ray.kill(made.board)
    found = made.look(30)
    assert found is not None
    assert found.code == "RG0609"
    assert found.message == "the process that hands out turns died"
