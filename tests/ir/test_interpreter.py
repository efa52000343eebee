"""Order, blocking and versions, with made-up durations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.interpreter import Interpreter
from rlinf_graph.ir.position import Moment, Part, Position, Select
from rlinf_graph.ir.program import (
    Acquire,
    Await,
    Channel,
    Free,
    Instruction,
    Program,
    Publish,
    Recv,
    Release,
    Repeat,
    Ring,
    Run,
    Send,
    WorkerGroup,
)
from rlinf_graph.ir.timeline import period


class Stopwatch:
    """Every run takes the seconds given for its group."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.dropped: list[tuple[str, int]] = []

    def perform(self, group: WorkerGroup, instruction: Instruction, at: Position) -> float:
        return self.seconds[group.name] if isinstance(instruction, Run) else 0.0

    def take(
        self, group: WorkerGroup, recv: Recv, at: Position, moment: Moment, rows: NDArray[np.int64]
    ) -> None:
        pass

    def handover(self, instruction: Recv | Acquire | Await, at: Position, samples: int) -> float:
        return self.seconds.get(type(instruction).__name__, 0.0)

    def put(
        self, group: WorkerGroup, send: Send, at: Position, moment: Moment, rows: NDArray[np.int64]
    ) -> None:
        pass

    def drop(self, edge: str, moment: Moment) -> None:
        self.dropped.append((edge, *moment))

    def finish(self, group: WorkerGroup, at: Position) -> None:
        pass


def group(name: str, *body: Instruction, ranks: int = 1) -> WorkerGroup:
    return WorkerGroup(name, ranks, tuple(range(ranks)), body)


def chain(chunks: int, capacity: int, staleness: int | None = None, ranks: int = 1) -> Program:
    """`a` makes 8 samples in chunks, `b` takes them; with staleness, `a` reads what `b` trains."""
    select = Select(Part.CHUNK, chunks)
    reads = (Await("m", "a", staleness, "copy"),) if staleness is not None else ()
    a = group("a", *reads, Repeat("chunk", chunks, (Run("a", 1), Send("e", 0))), ranks=ranks)
    take = Repeat("chunk", chunks, (Recv("e", "x", select), Run("b", 1)))
    b = group("b", take, Free("e"), *((Publish("m", "b"),) if reads else ()))
    return Program("chain", (a, b), (Channel("e", Source("a"), "b", "x", 8, capacity),))


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_chunks_overlap_by_the_textbook_makespan(chunks: int) -> None:
    """Sum of the parts of one chunk, and the slowest part for every further one."""
    events = Interpreter(chain(chunks, 1), Stopwatch(a=3.0, b=2.0)).run(1)
    assert max(e.end for e in events) == pytest.approx(5.0 + (chunks - 1) * 3.0)


def test_a_full_channel_holds_its_producer_back() -> None:
    """With room for one iteration `a` cannot run ahead; with room for two it works all the time."""
    for capacity, seconds in ((1, 5.0), (2, 4.0)):
        events = Interpreter(chain(1, capacity), Stopwatch(a=4.0, b=1.0)).run(20)
        assert period(events, 20) <= seconds + 1e-9
    slow = Interpreter(chain(1, 1), Stopwatch(a=1.0, b=4.0)).run(20)
    assert sum(e.group == "a" and e.end < 10.0 for e in slow) <= 4


@pytest.mark.parametrize(("staleness", "seconds"), [(0, 5.0), (1, 3.0), (3, 3.0)])
def test_staleness_lets_the_reader_run_ahead_by_that_much(staleness: int, seconds: float) -> None:
    program = chain(1, staleness + 1, staleness)
    events = Interpreter(program, Stopwatch(a=3.0, b=2.0)).run(30)
    assert period(events, 30) == pytest.approx(seconds)
    for iteration in range(staleness + 1, 30):
        reads = next(e for e in events if e.kind == "sync" and e.at.iteration == iteration)
        trained = next(
            e for e in events
            if e.group == "b" and e.kind == "run" and e.at.iteration == iteration - staleness - 1
        )  # fmt: skip
        assert reads.end >= trained.end


def test_versions_skip_what_is_not_delivered() -> None:
    awaited = Await("m", "a", staleness=1, method="copy", every=3)
    assert [awaited.version(i) for i in range(9)] == [0, 0, 0, 0, 3, 3, 3, 6, 6]


def test_ranks_take_turns_once_a_round() -> None:
    """A fast rank must not take the turn of a slow one of the same position twice."""
    body = (Acquire("ring", 1), Run("x", 1), Release("ring", 1))
    slow = (Acquire("ring", 1), Run("y", 1), Release("ring", 1))
    first = (Acquire("ring", 0), Run("w", 1), Release("ring", 0))
    groups = (group("x", *body), group("y", *slow), group("w", *first))
    ring = Ring("ring", (("w",), ("x", "y")), (0,))
    events = Interpreter(Program("p", groups, (), (ring,)), Stopwatch(x=1.0, y=5.0, w=1.0)).run(6)
    starts = {(e.group, e.at.iteration): e.start for e in events}
    assert all(starts["x", i] == starts["y", i] == 1.0 + 6.0 * i for i in range(6))


def test_what_cannot_go_on_says_who_waits_for_what() -> None:
    program = chain(1, 1, staleness=0)
    stuck = Program("stuck", (program.groups[1],), program.channels)
    stuck = Program(
        "stuck", (*stuck.groups, group("a", Await("m", "a", 0, "copy"))), stuck.channels
    )
    with pytest.raises(CompileError) as raised:
        Interpreter(stuck, Stopwatch(a=1.0, b=1.0)).run(2)
    (found,) = raised.value.diagnostics
    assert found.code == "RG0603"
    assert any("`b` rank 0 waits for samples of `e`" in note for note in found.notes)
    assert any("`a` rank 0 waits for version 1 of `m`" in note for note in found.notes)


def test_an_iteration_is_dropped_when_all_consumers_are_done() -> None:
    machine = Stopwatch(a=1.0, b=1.0)
    Interpreter(chain(2, 1), machine).run(3)
    assert machine.dropped == [("e", 0), ("e", 1), ("e", 2)]


def test_all_ranks_put_their_share() -> None:
    events = Interpreter(chain(2, 1, ranks=2), Stopwatch(a=1.0, b=1.0)).run(1)
    assert sorted((e.group, e.at.rank, e.at.chunk) for e in events) == [
        ("a", 0, 0), ("a", 0, 1), ("a", 1, 0), ("a", 1, 1), ("b", 0, 0), ("b", 0, 1)
    ]  # fmt: skip


def test_what_is_handed_over_comes_later() -> None:
    machine = Stopwatch(a=1.0, b=1.0, Recv=0.5)
    events = Interpreter(chain(chunks=2, capacity=1), machine).run(1)
    starts = {(e.group, e.at.chunk): e.start for e in events}
    assert starts == {("a", 0): 0.0, ("a", 1): 1.0, ("b", 0): 1.5, ("b", 1): 3.0}
