"""Who waits for whom, from the state of the board: no process, no clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray.board import Board
from rlinf_graph.backends.ray.waiting import Doing, Wait, at_reduction, behind, cycle, named
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


async def asked(*questions: tuple[tuple[str, int], str, tuple], board: Board | None = None):
    """The waits at a board when ranks have asked it, each one question."""
    board = board or Board(PROGRAM, Kept({}, {}))
    tasks = [
        asyncio.create_task(board.hear([], (method, arguments), who))
        for who, method, arguments in questions
    ]
    for _ in range(10):
        await asyncio.sleep(0)
    waits = await board.waits()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return waits


def test_a_wait_names_the_edge_the_moment_and_the_ranks() -> None:
    (wait,) = asyncio.run(asked((TRAIN, "get", ({("out", (3,)): ROWS},))))
    assert str(wait) == (
        "`train` rank 0 waits for samples of `out`, iteration 3, of `make` rank 0, `make` rank 1"
    )
    (wait,) = asyncio.run(asked((MAKE, "weights", ("policy", 2))))
    assert str(wait) == "`make` rank 0 waits for version 2 of `policy` of `train` rank 0"
    (wait,) = asyncio.run(asked((TRAIN, "acquire", (TRAIN, "ring", 1))))
    assert wait.on == (MAKE, ("make", 1))
    assert "its turn on ring, which has come to position 0" in str(wait)


def test_what_can_be_answered_is_no_wait() -> None:
    assert asyncio.run(asked((MAKE, "room", ([("out", (0,))],)))) == []
    assert asyncio.run(asked((MAKE, "acquire", (MAKE, "ring", 0)))) == []


def test_who_has_given_back_its_turn_is_not_waited_for() -> None:
    async def talk() -> list[Wait]:
        board = Board(PROGRAM, Kept({}, {}))
        for method, arguments in (("acquire", (MAKE, "ring", 0)), ("release", ("ring",))):
            await board.hear([], (method, arguments), MAKE)
        again = (MAKE, "acquire", (MAKE, "ring", 0))
        return await asked(again, (TRAIN, "acquire", (TRAIN, "ring", 1)), board=board)

    waits = {wait.who: wait for wait in asyncio.run(talk())}
    assert waits[TRAIN].on == (("make", 1),)


def test_a_full_edge_waits_for_its_reader() -> None:
    async def talk() -> list[Wait]:
        board = Board(PROGRAM, Kept({}, {}))
        await board.hear([], ("room", ([("out", (0,))],)), MAKE)
        return await asked((MAKE, "room", ([("out", (1,))],)), board=board)

    (wait,) = asyncio.run(talk())
    assert (wait.on, wait.until) == ((TRAIN,), (0,))
    assert "room in `out` for iteration 1, full with 1 moments" in str(wait)


def test_a_deadlock_is_a_cycle() -> None:
    questions = (
        (MAKE, "get", ({("back", (0,)): ROWS},)),
        (TRAIN, "get", ({("out", (0,)): ROWS},)),
    )
    waits = asyncio.run(asked(*questions))
    assert [wait.who for wait in cycle(waits)] in ([MAKE, TRAIN], [TRAIN, MAKE])
    assert cycle(waits[:1]) == []
    assert [wait.who for wait in behind(waits, ("make", 1))] == [TRAIN, MAKE]


def test_ranks_that_have_done_their_part_are_not_waited_for() -> None:
    wait = Wait(TRAIN, "samples", (MAKE, ("make", 1)), (3,))
    doing = {MAKE: Doing("Run", Position(4, 0)), ("make", 1): Doing("Run", Position(3, 1))}
    everybody = {MAKE, ("make", 1), TRAIN}
    assert wait.narrowed(doing, everybody).on == (("make", 1),)
    assert wait.narrowed(doing, {TRAIN}).on == ()
    assert "of which there is nobody left" in str(wait.narrowed(doing, {TRAIN}))


def test_a_reduction_waits_for_ranks_that_are_not_there() -> None:
    at = Position(2, 0, minibatch=1)
    doing = {MAKE: Doing("OptimizerStep", at)}
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
        board = Board(PROGRAM, Kept({}, {}))
        tasks = [asyncio.create_task(board.fail(diagnostics(t), b)) for t, b in failures]
        await asyncio.gather(*tasks)
        (cause,) = await board.failure()
        with pytest.raises(CompileError, match=cause.message):
            await board.weights("policy", 1)
        await board.fail((cause,))  # who waited is told of it, and tells it again
        return cause.message, await board.failed_besides((cause,))

    assert asyncio.run(fail(("first", False), ("second", False), ("third", False))) == ("first", 2)
    assert asyncio.run(fail(("gloo", True), ("reason", False))) == ("reason", 1)
    assert asyncio.run(fail(("gloo", True))) == ("gloo", 0)
