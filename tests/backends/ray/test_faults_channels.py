"""Faults of processes written by hand that talk through a channel: each ends soon and says why."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayError

from rlinf_graph.backends.ray.channel import steps
from rlinf_graph.backends.ray.channel.arrived import Source
from rlinf_graph.backends.ray.channel.channel import Channel
from rlinf_graph.backends.ray.channel.errors import ChannelError, PeerFailed, TimedOut
from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.backends.ray.workers import Reservation, Worker, WorkerError, WorkerGroup
from rlinf_graph.ir.cluster_file import load_cluster

ENDS_S = 10.0
LATE_S = 3.0
MEGABYTE = 1 << 17
"""Items of float64."""

pytestmark = [pytest.mark.timeout(180), pytest.mark.soak(50, 3)]


class Maker(Worker):
    """Puts items; after the third something happens."""

    def make(self, channel: Channel, kind: str) -> None:
        with channel:
            for number in range(3):
                channel.put(number)
            channel.flush()
            if kind == "raise":
                raise ValueError("no such answer")
            if kind == "exit":
                os._exit(7)
            if kind == "unpicklable":
                channel.put(threading.Lock())
            if kind == "hold":
                threading.Event().wait()

    def make_many(self, channel: Channel, count: int) -> int:
        """Returns the most bytes of shared memory that this end has ever had."""
        for number in range(count):
            channel.put(np.full(MEGABYTE, number, np.float64))
        channel.close()
        pool = channel._end.sender._pool
        return pool._nbytes if pool is not None else 0


class Reader(Worker):
    """Takes all items, each with a pause; of arrays it keeps the first value."""

    def read(
        self, channel: Channel, pause_s: float = 0.0, late_s: float | None = None
    ) -> list[Any]:
        came: list[Any] = []
        try:
            while True:
                item = channel.get(timeout=late_s)
                came.append(float(item[0]) if isinstance(item, np.ndarray) else item)
                del item
                time.sleep(pause_s)
        except ChannelError as error:
            return [*came, f"{type(error).__name__}: {error}"]


@pytest.fixture(scope="module")
def reader(ray_nodes: list[str]) -> Iterator[WorkerGroup]:
    """One that no test ends."""
    with (
        Reservation(load_cluster("1xcpu")) as made,
        WorkerGroup.launch(Reader, (), made.without_devices(1), name="reader") as group,
    ):
        yield group


@pytest.fixture
def maker(reader: WorkerGroup, seats: dict[int, Seat]) -> Iterator[WorkerGroup]:
    """One for each test; nothing of it is left."""
    seats_of = reader._placement.reservation.without_devices(1)
    with WorkerGroup.launch(Maker, (), seats_of, name="maker") as group:
        seats[0] = Seat("", group.processes[0])
        yield group


def ended(reader: WorkerGroup, channel: Channel) -> tuple[list[Any], str]:
    """What comes, and the error at the end, at most ten seconds from now."""
    (told,) = reader.read(channel).wait(ENDS_S)
    return told[:-1], told[-1]


@pytest.mark.parametrize("kind", ["raise", "unpicklable"])
def test_an_exception_reaches_the_consumer(
    kind: str, maker: WorkerGroup, reader: WorkerGroup
) -> None:
    channel = Channel.create()
    making = maker.make(channel, kind)
    came, error = ended(reader, channel)
    cause = "ValueError: no such answer" if kind == "raise" else "TypeError: cannot pickle"
    assert came == [0, 1, 2][: len(came)]
    assert error.startswith("PeerFailed")
    assert cause in error
    assert f"process {maker.processes[0]} " in error
    with pytest.raises(WorkerError, match=cause) as raised:
        making.wait(ENDS_S)
    assert raised.value.failure.rank == 0
    assert "`maker` rank 0 on" in str(raised.value)


@pytest.mark.parametrize("kind", ["exit", "kill"])
def test_a_death_reaches_the_consumer(kind: str, maker: WorkerGroup, reader: WorkerGroup) -> None:
    channel = Channel.create()
    making = maker.make(channel, "exit" if kind == "exit" else "hold")
    if kind == "kill":
        assert [channel.get(timeout=ENDS_S) for _ in range(3)] == [0, 1, 2]
        os.kill(maker.processes[0], signal.SIGKILL)
    _came, error = ended(reader, channel)
    assert error.startswith("PeerFailed")
    assert f"process {maker.processes[0]} " in error
    assert "died without leaving" in error
    with pytest.raises(PeerFailed, match="died without leaving"):
        channel.put("more")
    with pytest.raises(WorkerError, match="its process died") as raised:
        making.wait(ENDS_S)
    assert raised.value.failure.rank == 0


def test_a_death_that_takes_an_item_away_is_named(maker: WorkerGroup) -> None:
    """Not what Ray says of the item, whose owner's death the broker may not have seen yet."""
    channel = Channel.create()
    making = maker.make(channel, "hold")
    assert channel.get(timeout=ENDS_S) == 0
    os.kill(maker.processes[0], signal.SIGKILL)
    opening = channel._receiver._open(Source(ray.put("an item")))
    next(opening)
    with pytest.raises(PeerFailed, match=f"process {maker.processes[0]} .*died without leaving"):
        steps.block(_going_on(opening))
    with pytest.raises(WorkerError, match="its process died"):
        making.wait(ENDS_S)


def _going_on(opening: steps.Steps[Any]) -> steps.Steps[Any]:
    """A procedure whose first reference turned out to be lost."""
    reference = opening.throw(steps.lost(RayError("its owner has died")))
    while True:
        reference = opening.send((yield reference))


def test_who_does_not_answer_is_named_by_who_waits(maker: WorkerGroup, reader: WorkerGroup) -> None:
    """A stopped process: a wait with a timeout says which producer, and since when."""
    channel = Channel.create()
    making = maker.make(channel, "hold")
    assert [channel.get(timeout=ENDS_S) for _ in range(3)] == [0, 1, 2]
    os.kill(maker.processes[0], signal.SIGSTOP)
    (told,) = reader.read(channel, late_s=LATE_S).wait(LATE_S + ENDS_S)
    (error,) = told
    assert error.startswith("TimedOut: get from key None waited 3 s")
    assert "producer actor " in error
    assert f"process {maker.processes[0]} " in error
    assert "its process is stopped" in error
    with pytest.raises(TimedOut, match="its process is stopped"):
        channel.get(timeout=0.1)
    with pytest.raises(TimeoutError, match="`make` of `maker`: no answer of rank 0 within 1 s"):
        making.wait(1)


def test_a_slow_consumer_slows_its_producer(maker: WorkerGroup, reader: WorkerGroup) -> None:
    """A hundred times slower: everything arrives in order, in bounded memory at the producer."""
    channel = Channel.create(capacity=3)
    making = maker.make_many(channel, 30)
    (told,) = reader.read(channel, pause_s=0.05).wait(60)
    *came, end = told
    assert came == list(range(30))
    assert end.startswith("EndOfStream")
    assert channel.statistics().keys[None].most <= 3
    (nbytes,) = making.wait(ENDS_S)
    assert nbytes <= 8 << 21  # of two MB: what the key holds, what is written, what is still read


def test_the_channel_is_gone_with_its_maker(ray_nodes: list[str]) -> None:
    """A named channel whose name and process are free again, without an order to do so."""
    channel = Channel.create("once")
    channel.put(1)
    channel.fail(RuntimeError("over"))
    del channel
    gc.collect()
    again = Channel.create("once")
    again.close()
    deadline = time.monotonic() + ENDS_S
    del again
    gc.collect()
    while ray.util.list_named_actors(all_namespaces=True):
        assert time.monotonic() < deadline
        time.sleep(0.02)  # between looks, not instead of one
