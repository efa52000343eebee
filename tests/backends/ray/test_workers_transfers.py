"""What workers send one another arrives as it was sent, or both ends are told why not."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rlinf_graph.backends.ray.workers import (
    Reservation,
    Worker,
    WorkerError,
    WorkerGroup,
)
from rlinf_graph.backends.ray.workers.exchange import Exchange
from rlinf_graph.backends.ray.workers.matching import Problem, Wanted
from rlinf_graph.backends.ray.workers.payload import seal
from rlinf_graph.ir.batches import Rewards
from rlinf_graph.ir.cluster_file import load_cluster

pytestmark = pytest.mark.timeout(120)
SOON_S = 10.0


class Talker(Worker):
    def told(self) -> tuple[Any, ...]:
        return self.devices, self.local_rank, os.environ["VISIBLE_DEVICES"], self.group_name

    def put(self, value: Any, group: str, rank: int, **how: Any) -> None:
        self.send(value, group, rank, **how)

    def take(self, group: str, rank: int, **how: Any) -> Any:
        return self.recv(group, rank, **how)

    def fill(self, group: str, rank: int, shape: tuple[int, ...]) -> tuple[bool, torch.Tensor]:
        mine = torch.zeros(shape)
        return self.recv(group, rank, into=mine).data_ptr() == mine.data_ptr(), mine

    def put_many(self, count: int, group: str, rank: int) -> None:
        """Values are taken as they are when the send begins."""
        tensor = torch.zeros(3)
        sends = []
        for number in range(count):
            tensor.fill_(number)
            sends.append(self.isend(tensor, group, rank))
        for send in sends:
            send.wait()
            assert send.done()

    async def take_many(self, count: int, group: str, rank: int) -> list[float]:
        """The receives begin before any is waited for."""
        received = [self.irecv(group, rank) for _ in range(count)]
        return [float((await one)[0]) for one in received]

    def fail_or_wait(self, group: str, rank: int) -> None:
        """Rank 0 fails by itself, the others for another."""
        if self.rank:
            self.recv(group, rank)
        raise ValueError("its own")

    def tell_all(self, value: Any, to: Any) -> None:
        self.broadcast(value, to)

    def gather(self, size: int) -> list[float]:
        self.barrier(timeout=SOON_S)
        return [float(t.sum()) for t in self.all_gather(torch.full((size,), float(self.rank)))]

    def reduced(self, op: str, size: int) -> torch.Tensor:
        tensor = torch.arange(size, dtype=torch.float64) + self.rank
        return self.all_reduce(tensor, op, timeout=SOON_S)

    def lose_link(self) -> None:
        """As after a reduction that broke off at one rank alone."""
        if self.rank:
            self._place.links._groups.clear()

    def differ(self) -> None:
        if self.rank:
            self.barrier(timeout=SOON_S)
        else:
            self.all_gather(1, timeout=SOON_S)

    def only_first(self, timeout: float) -> None:
        if self.rank == 0:
            self.barrier(timeout=timeout)

    def fail(self) -> None:
        raise ValueError("no such answer")

    def leave(self) -> None:
        sys.exit("had enough")

    def put_lock(self, group: str, rank: int) -> None:
        self.send([threading.Lock()], group, rank)


@pytest.fixture(scope="module")
def pair(ray_nodes: list[str]) -> Iterator[tuple[WorkerGroup, WorkerGroup]]:
    with (
        Reservation(load_cluster("2xcpu")) as made,
        WorkerGroup.launch(Talker, (), made.on([0, 1]), name="left") as left,
        WorkerGroup.launch(Talker, (), made.without_devices(2), name="right") as right,
    ):
        yield left, right


Pair = tuple[WorkerGroup, WorkerGroup]


def moved(pair: Pair, value: Any, **how: Any) -> Any:
    """What rank 1 of `right` gets when rank 0 of `left` sends a value."""
    sent = pair[0].on(0).put(value, "right", 1, timeout=SOON_S)
    (got,) = pair[1].on(1).take("left", 0, timeout=SOON_S, **how).wait(30)
    sent.wait(30)
    return got


def test_processes_without_devices_see_none(pair: Pair) -> None:
    assert pair[1].told().wait(30) == [((), rank, "", "right") for rank in range(2)]


@pytest.mark.parametrize("size", [3, 30_000], ids=["inside the message", "by reference"])
def test_any_value_arrives_as_it_was(pair: Pair, size: int) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.int64):
        tensor = torch.arange(4 * size).reshape(4, size).T.to(dtype)
        got = moved(pair, tensor, kind=torch.Tensor)
        assert got.dtype == dtype
        assert torch.equal(got, tensor)
    index = torch.arange(size)
    rewards = Rewards(index=index, group=index // 2, values=torch.rand(size))
    got = moved(pair, rewards, kind=Rewards)
    assert torch.equal(got.values, rewards.values)
    assert torch.equal(got.group, rewards.group)
    array = np.random.default_rng(0).random(size)
    got = moved(pair, {"a": [array, "text"], "b": (torch.ones(size), None)})
    assert np.array_equal(got["a"][0], array)
    assert got["a"][1] == "text"
    assert torch.equal(got["b"][0], torch.ones(size))
    assert moved(pair, None) is None


def test_a_tensor_is_filled_in_place(pair: Pair) -> None:
    sent = pair[0].on(1).put(torch.arange(6.0).reshape(2, 3), "right", 0)
    ((same, got),) = pair[1].on(0).fill("left", 1, (2, 3)).wait(30)
    sent.wait(30)
    assert same
    assert torch.equal(got, torch.arange(6.0).reshape(2, 3))


def test_transfers_begin_before_they_are_waited_for(pair: Pair) -> None:
    sent = pair[0].on(0).put_many(20, "right", 0)
    assert pair[1].on(0).take_many(20, "left", 0).wait(30) == [[float(n) for n in range(20)]]
    sent.wait(30)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a handle with a failure, for the other ranks: all of them end here, and are counted."""
    monkeypatch.setattr("rlinf_graph.backends.ray.workers.handle.GRACE_S", SOON_S)


def test_one_value_for_many_ranks(pair: Pair) -> None:
    left, right = pair
    for size in (3, 30_000):
        told = left.on(0).tell_all(torch.arange(size), ["right", ("left", [0, 1])])
        got = right.take("left", 0).wait(30) + left.on(1).take("left", 0).wait(30)
        told.wait(30)
        assert all(torch.equal(one, torch.arange(size)) for one in got)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"tag": "rewards"}, "tag None is sent, tag 'rewards' is expected"),
        ({"kind": Rewards}, r"Tensor \(2, 3\) float32 is sent, kind Rewards is expected"),
        ({"shape": (3, 2)}, r"shape \(3, 2\) is expected"),
    ],
    ids=["tag", "kind", "shape"],
)
def test_both_ends_learn_that_they_do_not_agree(pair: Pair, how: dict[str, Any], why: str) -> None:
    began = time.monotonic()
    sent = pair[0].on(0).put(torch.zeros(2, 3), "right", 1)
    if "shape" in how:
        taken = pair[1].on(1).fill("left", 0, how["shape"])
    else:
        taken = pair[1].on(1).take("left", 0, **how)
    for end, group in ((taken, "right"), (sent, "left")):
        with pytest.raises(WorkerError, match=f"(?s)MismatchError: .*{why}") as raised:
            end.wait(SOON_S)
        assert raised.value.failure.group == group
    assert time.monotonic() - began < SOON_S
    assert moved(pair, "again") == "again"


def test_who_is_not_there_is_named(pair: Pair) -> None:
    with pytest.raises(WorkerError, match="`right` has 2 ranks: no rank 2"):
        pair[0].on(0).put(1, "right", 2).wait(SOON_S)
    nobody = pair[0].on(0).take("nobody", 0, timeout=0.2)
    with pytest.raises(WorkerError, match=r"TimeoutError: .* no worker group `nobody`"):
        nobody.wait(SOON_S)


def test_a_deadlock_is_named(pair: Pair) -> None:
    left, right = pair
    one = left.on(0).put(1, "right", 0, timeout=5)
    two = right.on(0).put(2, "left", 0, timeout=SOON_S)
    cycle = (
        "deadlock: `left` rank 0 sends int to `right` rank 0; `right` rank 0 sends int to `left`"
    )
    with pytest.raises(WorkerError, match=cycle):
        one.wait(SOON_S)
    with pytest.raises(WorkerError, match=cycle) as raised:
        two.wait(SOON_S)
    assert raised.value.failure.group == "left"


def test_ranks_of_a_group_gather_and_reduce(pair: Pair) -> None:
    left, _ = pair
    for size in (2, 30_000):
        assert left.gather(size).wait(30) == [[0.0, float(size)]] * 2
    for op, expected in (("sum", [1, 3, 5]), ("max", [1, 2, 3]), ("min", [0, 1, 2])):
        assert [got.tolist() for got in left.reduced(op, 3).wait(30)] == [expected] * 2
    left.lose_link().wait(30)
    assert [got.tolist() for got in left.reduced("sum", 3).wait(30)] == [[1, 3, 5]] * 2
    with pytest.raises(WorkerError, match="ValueError: `mean` is none of sum, min, max, product"):
        left.reduced("mean", 3).wait(30)


def test_ranks_that_do_not_agree_are_told(pair: Pair) -> None:
    left, _ = pair
    with pytest.raises(WorkerError, match="do not agree: rank 0: all_gather; rank 1: barrier"):
        left.differ().wait(SOON_S)
    one, two = left.on(0).reduced("sum", 2), left.on(1).reduced("sum", 3)
    with pytest.raises(WorkerError, match=r"Tensor \(2,\) float64; .* Tensor \(3,\) float64"):
        one.wait(SOON_S)
    with pytest.raises(WorkerError, match="do not agree"):
        two.wait(SOON_S)
    with pytest.raises(WorkerError, match="rank 1 did not come to `barrier`"):
        left.only_first(0.5).wait(SOON_S)
    assert left.gather(1).wait(SOON_S) == [[0.0, 1.0]] * 2


def test_an_exception_ends_the_waits_of_others_with_its_cause(pair: Pair) -> None:
    left, right = pair
    waiting, beside = right.take("left", 0), left.on(1).take("left", 0)
    behind = right.on(1).take("left", 0)  # starts after the failure
    with pytest.raises(WorkerError, match="no such answer") as raised:
        left.on(0).fail().wait(SOON_S)
    assert isinstance(raised.value.__cause__, ValueError)
    for handle, others in ((waiting, 2), (beside, 1), (behind, 1)):
        with pytest.raises(WorkerError) as raised:
            handle.wait(SOON_S)
        assert (raised.value.failure.group, raised.value.failure.rank) == ("left", 0)
        assert raised.value.failure.method == "fail"
        assert raised.value.others == others
    assert moved(pair, "again") == "again"


def test_a_cause_that_was_only_counted_is_not_lost(pair: Pair) -> None:
    left, right = pair
    failing = left.on(0).fail()
    with pytest.raises(WorkerError, match="its own") as raised:
        right.fail_or_wait("left", 0).wait(SOON_S)
    assert raised.value.others == 1
    with pytest.raises(WorkerError, match="no such answer"):
        left.on(1).take("left", 0).wait(SOON_S)
    with pytest.raises(WorkerError, match="no such answer"):
        failing.wait(SOON_S)
    assert moved(pair, "again") == "again"


def test_what_cannot_be_sent_and_a_worker_that_leaves(pair: Pair) -> None:
    left, right = pair
    for call, why in (
        (lambda: left.on(0).put_lock("right", 1), "in `put_lock`: TypeError: cannot pickle"),
        (lambda: left.on(0).put(1, "right", 1, tag=[1]), r"TypeError: tag \[1\] is neither"),
        (lambda: left.on(0).leave(), "in `leave`: SystemExit: had enough"),
    ):
        waiting = right.on(1).take("left", 0)
        for handle in (call(), waiting):
            with pytest.raises(WorkerError, match=f"`left` rank 0 on .* {why}"):
                handle.wait(SOON_S)
    assert moved(pair, "again") == "again"


def test_a_late_call_of_a_closed_group_counts_for_no_later_group_of_the_name() -> None:
    async def late() -> list[Any]:
        exchange, peer = Exchange(), ("closed", 0)
        said = [
            await exchange.send(peer, ("right", 0), None, seal(1), 0, time.time(), SOON_S),
            await exchange.receive(peer, ("right", 0), Wanted(), 0, time.time(), SOON_S),
        ]
        return [*said, len(exchange._turns)]

    assert asyncio.run(late()) == [Problem("closed", "worker group `closed` was closed")] * 2 + [0]
