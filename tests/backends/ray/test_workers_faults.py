"""What dies in a worker group ends every wait for it, with its cause, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import ray
import torch
from torch import distributed as dist

from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.backends.ray.workers import Handle, Reservation, Worker, WorkerError, WorkerGroup
from rlinf_graph.ir.cluster import Cluster
from tests.backends.ray.nearer import until

pytestmark = pytest.mark.timeout(120)
ENDS_S = 10.0
SILENCE_S = 3.0


class Mortal(Worker):
    def take(self, group: str, rank: int) -> Any:
        return self.recv(group, rank)

    def put(self, value: Any, group: str, rank: int) -> None:
        self.send(value, group, rank)

    def connect(self) -> list[float]:
        """By the variables of the environment alone."""
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
        return self.reduce()

    def reduce(self) -> list[float]:
        tensor = torch.ones(2)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def exit(self) -> None:
        os._exit(7)

    def hold(self) -> None:
        threading.Event().wait()

    def gather(self) -> list[int]:
        return self.all_gather(self.rank)

    def fail_in_turn(self) -> None:
        """Ranks above 0 wait until they are told to."""
        if self.rank:
            self.recv("waiter", 0)
        raise ValueError(f"of rank {self.rank}")

    def outlive(self, rank: int) -> None:
        """Fail for the failure of another rank, but only when told to."""
        try:
            self.recv("crew", rank)
        finally:
            self.recv("waiter", 0)

    def fail(self) -> None:
        raise Refusal("no such answer")


class Refusal(Exception):
    """It cannot be pickled."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.lock = threading.Lock()


def failed(handle: Handle, seconds: float = ENDS_S) -> WorkerError:
    with pytest.raises(WorkerError) as raised:
        handle.wait(seconds)
    return raised.value


def launched_again(made: Reservation, waiter: WorkerGroup) -> None:
    """A new group of the name can be talked to, and its end is told."""
    with WorkerGroup.launch(Mortal, (), made.on([0]), name="crew") as crew:
        sent = crew.put("again", "waiter", 0)
        assert waiter.take("crew", 0).wait(ENDS_S) == ["again"]
        sent.wait(ENDS_S)
        waiting = waiter.take("crew", 0)
    assert "ConnectionError: worker group `crew` was closed" in str(failed(waiting))


def test_faults_end_all_waits_with_their_cause_and_leave_nothing(
    cores: Callable[..., Cluster], seats: dict[int, Seat]
) -> None:
    """An exception, `os._exit` and SIGKILL, the last in the middle of a reduction by gloo."""
    with (
        Reservation(cores(2, machines=2)) as made,
        WorkerGroup.launch(Mortal, (), made.without_devices(1), name="waiter") as waiter,
    ):
        with WorkerGroup.launch(Mortal, (), made.on(range(3)), name="crew") as crew:
            for process in (*waiter.processes, *crew.processes):
                seats[process] = Seat("", process)
            assert crew.connect().wait(30) == [[3.0, 3.0]] * 3

            waiting = waiter.take("crew", 0)
            error = failed(crew.on([0]).fail())
            assert "`crew` rank 0" in str(error)
            assert "Refusal: no such answer" in str(error)
            assert failed(waiting).failure == error.failure

            held, reducing = crew.on(1).hold(), crew.on([0, 2]).reduce()
            os.kill(crew.processes[1], signal.SIGKILL)
            error = failed(reducing)
            assert (error.failure.rank, error.failure.kind) == (1, "died")
            assert error.others in (1, 2)  # gloo may leave one of them waiting
            assert failed(held).failure.rank == 1

            waiting = waiter.take("crew", 2)
            error = failed(crew.on(2).exit())
            assert "`crew` rank 2" in str(error)
            assert "in `exit`: its process died" in str(error)
            later = failed(waiting)
            assert (later.failure.rank, later.failure.kind, later.others) == (2, "died", 1)
            assert (failed(waiter.put(1, "crew", 2)).failure.rank) == 2

        with pytest.raises(RuntimeError, match="`crew` is closed"):
            crew.reduce()
        launched_again(made, waiter)


def waits(group: WorkerGroup) -> int:
    """How many wait at the exchange."""
    return ray.get(group._exchange.__ray_call__.remote(lambda exchange: len(exchange._waits)))


@pytest.mark.parametrize("dies", [False, True], ids=["fails later", "fails for another"])
def test_a_failure_that_comes_late_troubles_no_call_that_began_after_the_first_was_raised(
    cores: Callable[..., Cluster], seats: dict[int, Seat], *, dies: bool
) -> None:
    with (
        Reservation(cores(2)) as made,
        WorkerGroup.launch(
            Mortal, (), made.without_devices(1), name="waiter", concurrency=2
        ) as waiter,
        WorkerGroup.launch(Mortal, (), made.without_devices(3), name="crew") as crew,
    ):
        for process in (*waiter.processes, *crew.processes):
            seats[process] = Seat("", process)
        if dies:
            late = crew.on(1).outlive(0)
            assert failed(crew.on(0).exit()).failure.kind == "died"
        else:
            late = crew.on([0, 1]).fail_in_turn()
            error = failed(late)
            assert (error.failure.rank, error.others) == (0, 0)
        taking = waiter.take("crew", 1)
        gathering = None if dies else crew.gather()
        assert until(
            lambda: waits(crew) == (2 if dies else 4)
        )  # the late rank, and who is not to hear
        waiter.put("fail now", "crew", 1).wait(ENDS_S)
        if gathering:
            assert gathering.wait(ENDS_S) == [[0, 1, 2]] * 3
        else:
            assert failed(late).failure.rank == 0
        crew.on(1).put("new", "waiter", 0).wait(ENDS_S)
        assert taking.wait(ENDS_S) == ["new"]


def test_a_process_that_does_not_answer_is_an_error_for_who_waits_until_it_wakes(
    cores: Callable[..., Cluster], seats: dict[int, Seat]
) -> None:
    with (
        Reservation(cores(2)) as made,
        WorkerGroup.launch(Mortal, (), made.without_devices(1), name="waiter") as waiter,
        WorkerGroup.launch(Mortal, (), made.on([0, 1]), name="crew", silence=SILENCE_S) as crew,
    ):
        for process in (*waiter.processes, *crew.processes):
            seats[process] = Seat("", process)
        waiting, process = waiter.take("crew", 1), crew.processes[1]
        os.kill(process, signal.SIGSTOP)
        try:
            putting = crew.on(1).put("late", "waiter", 0)
            error = failed(putting, SILENCE_S + ENDS_S)
            assert (error.failure.rank, error.failure.kind, error.others) == (1, "silent", 0)
            assert "`crew` rank 1" in str(error)
            assert "in `put`: its process does not answer: nothing for 3 s" in str(error)
            assert f"py-spy dump --pid {process}" in str(error)
            assert failed(waiting).failure.kind == "silent"
            assert failed(waiter.take("crew", 1)).failure.kind == "silent"
            with pytest.raises(WorkerError, match="does not answer"):
                asyncio.run(awaited(crew.on(1).fail()))
        finally:
            wakes = threading.Timer(1.0, os.kill, (process, signal.SIGCONT))
            wakes.start()
        again = met(lambda: waiter.take("crew", 1), lambda: crew.on(1).put("again", "waiter", 0))
        assert again == ["again"]
        wakes.join()


def met(take: Callable[[], Handle], put: Callable[[], Handle]) -> Any:
    """What a receive gets of a send; each is made again, alone, while it fails for what was before.

    A send waits for the next receive when one has failed that came before it.
    """
    calls = {make: make() for make in (take, put)}
    deadline = time.monotonic() + ENDS_S
    while time.monotonic() < deadline:
        ended = {make: call for make, call in calls.items() if call.done()}
        failing = [make for make, call in ended.items() if fails(call)]
        if ended == calls and not failing:
            return calls[take].wait()
        calls |= {make: make() for make in failing}
        time.sleep(0.05)  # between looks, not instead of one
    raise AssertionError(f"the ends did not meet: {calls}")


def fails(call: Handle) -> bool:
    """Of a call that has ended."""
    try:
        call.wait()
    except WorkerError:
        return True
    return False


async def awaited(handle: Handle) -> None:
    async with asyncio.timeout(SILENCE_S + ENDS_S):
        await handle
