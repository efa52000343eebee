"""Who waits for whom, from the state of the board: no process, no clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray.board import Board
from rlinf_graph.backends.ray.desk import Desk
from rlinf_graph.backends.ray.waiting import (
    Doing,
    Place,
    Wait,
    at_reduction,
    behind,
    cycle,
    named,
)
from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.position import Position
from rlinf_graph.ir.program import Channel, Program, Publish, Ring, Run, When, WorkerGroup

ROWS = np.arange(4)
GROUPS = (
    WorkerGroup("make", 2, (0, 1), (Run("make", 4),)),
    WorkerGroup("train", 1, (2,), (When(1, (Publish("policy", "train"),)),)),
)
EDGES = (
    Channel("out", Source("make"), "train", "samples", 4, 1),
    Channel("back", Source("train"), "make", "samples", 4, 1),
)
PROGRAM = Program("loop", GROUPS, EDGES, (Ring("ring", (("make",), ("train",)), (0, 1)),))
TRAIN = ("train", 0)
MAKE = ("make", 0)


def desk() -> Desk:
    """Of all edges and rings of the program."""
    return Desk(PROGRAM, {group.name for group in GROUPS}, Kept(0, {}))


def asked(*questions: tuple[Place, str, tuple[Any, ...]], of: Desk | None = None) -> list[Wait]:
    """The waits at a desk when ranks have asked it, each one question."""
    of = of or desk()
    for who, method, arguments in questions:
        of.ask(who, (method, arguments), lambda _answer: None)
    return of.waits()


def test_a_wait_names_the_edge_the_moment_and_the_ranks() -> None:
    (wait,) = asked((TRAIN, "get", ({("out", (3,)): (ROWS, frozenset[int]())},)))
    assert str(wait) == (
        "`train` rank 0 waits for samples of `out`, iteration 3, of `make` rank 0, `make` rank 1"
    )
    (wait,) = asked((MAKE, "weights", ("policy", 2)))
    assert str(wait) == "`make` rank 0 waits for version 2 of `policy` of `train` rank 0"
    (wait,) = asked((TRAIN, "acquire", (TRAIN, "ring", 1)))
    assert wait.on == (MAKE, ("make", 1))
    assert "its turn on ring, which has come to position 0" in str(wait)


def test_what_can_be_answered_is_no_wait() -> None:
    assert (asked((MAKE, "room", ([("out", (0,))],)))) == []
    assert (asked((MAKE, "acquire", (MAKE, "ring", 0)))) == []


def test_who_has_given_back_its_turn_is_not_waited_for() -> None:
    of = desk()
    assert asked((MAKE, "acquire", (MAKE, "ring", 0)), of=of) == []
    of.tell("release", ("ring",))
    again = (MAKE, "acquire", (MAKE, "ring", 0))
    waits = {wait.who: wait for wait in asked(again, (TRAIN, "acquire", (TRAIN, "ring", 1)), of=of)}
    assert waits[TRAIN].on == (("make", 1),)


def test_a_full_edge_waits_for_its_reader() -> None:
    of = desk()
    assert asked((MAKE, "room", ([("out", (0,))],)), of=of) == []
    (wait,) = asked((MAKE, "room", ([("out", (1,))],)), of=of)
    assert (wait.on, wait.until) == ((TRAIN,), (0,))
    assert "room in `out` for iteration 1, full with 1 moments" in str(wait)


def test_a_deadlock_is_a_cycle() -> None:
    questions = (
        (MAKE, "get", ({("back", (0,)): (ROWS, frozenset[int]())},)),
        (TRAIN, "get", ({("out", (0,)): (ROWS, frozenset[int]())},)),
    )
    waits = asked(*questions)
    assert [wait.who for wait in cycle(waits)] in ([MAKE, TRAIN], [TRAIN, MAKE])
    assert cycle(waits[:1]) == []
    assert [wait.who for wait in behind(waits, ("make", 1))] == [TRAIN, MAKE]


def test_ranks_that_have_done_their_part_are_not_waited_for() -> None:
    wait = Wait(TRAIN, "samples", (MAKE, ("make", 1)), (3,))
    doing: dict[Place, Doing] = {
        MAKE: Doing("Run", Position(4, 0)),
        ("make", 1): Doing("Run", Position(3, 1)),
    }
    everybody = {MAKE, ("make", 1), TRAIN}
    assert wait.narrowed(doing, everybody).on == (("make", 1),)
    assert wait.narrowed(doing, {TRAIN}).on == ()
    assert "of which there is nobody left" in str(wait.narrowed(doing, {TRAIN}))


def test_a_reduction_waits_for_ranks_that_are_not_there() -> None:
    at = Position(2, 0, minibatch=1)
    doing: dict[Place, Doing] = {MAKE: Doing("OptimizerStep", at)}
    (wait,) = at_reduction(PROGRAM, doing, {MAKE: 5.0})
    assert (wait.who, wait.on, wait.seconds) == (MAKE, (("make", 1),), 5.0)
    doing[("make", 1)] = Doing("OptimizerStep", replace(at, rank=1))
    assert at_reduction(PROGRAM, doing, {}) == []
    (stuck,) = at_reduction(PROGRAM, doing, {}, deaf=[("make", 1)])[:1]
    assert stuck.on == (("make", 1),)
    doing[("make", 1)] = Doing("Accumulate", replace(at, rank=1, minibatch=0))
    assert [wait.on for wait in at_reduction(PROGRAM, doing, {})] == [(("make", 1),)]


def test_words() -> None:
    assert named(MAKE) == "`make` rank 0"
    at = Position(7, 0, chunk=2, micro_batch=1, steps=(4,))
    assert str(Doing("Accumulate", at)) == (
        "`Accumulate` of iteration 7, step 4, chunk 2, micro-batch 1"
    )


def diagnostics(text: str) -> tuple[Diagnostic, ...]:
    return (Diagnostic("RG0607", text),)


def test_the_first_cause_wins_and_later_ones_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that broke gives way to the failure that explains it."""
    monkeypatch.setattr("rlinf_graph.backends.ray.board.DEATH_S", 0.05)

    async def fail(*failures: tuple[str, bool]) -> tuple[str, int]:
        board = Board(PROGRAM, Kept(0, {}))
        tasks = [asyncio.create_task(board.fail(diagnostics(t), b)) for t, b in failures]
        await asyncio.gather(*tasks)
        (cause,) = await board.failure()
        with pytest.raises(CompileError, match=cause.message):
            await board.records(0, 1.0)
        await board.fail((cause,))  # who waited is told of it, and tells it again
        return cause.message, await board.failed_besides((cause,))

    assert asyncio.run(fail(("first", False), ("second", False), ("third", False))) == ("first", 2)
    assert asyncio.run(fail(("gloo", True), ("reason", False))) == ("reason", 1)
    assert asyncio.run(fail(("gloo", True))) == ("gloo", 0)
