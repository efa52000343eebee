"""Channels between real processes."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch

from rlinf_graph.backends.ray.channel.channel import Channel
from rlinf_graph.backends.ray.channel.errors import (
    ChannelError,
    Closed,
    Empty,
    EndOfStream,
    Full,
    NameTaken,
    PeerFailed,
    Stuck,
    TimedOut,
    TooLarge,
)

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("clean")]
MEGABYTE = 1 << 18
"""Items of float32."""


@pytest.fixture
def clean(ray_nodes: list[str]) -> Iterator[None]:
    """No named actor is left."""
    yield
    gc.collect()
    until(lambda: ray.util.list_named_actors(all_namespaces=True) == [])


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "not within ten seconds"
        time.sleep(0.01)  # between looks, not instead of one


def memory(process: int) -> list[str]:
    """The segments of channels that a process has mapped."""
    with open(f"/proc/{process}/maps", encoding="utf-8") as maps:
        return [line for line in maps if "memfd:channel" in line]


def waiting(channel: Channel, key: Any = None) -> tuple[int, int]:
    """How many wait to put and to get."""
    entry = channel.statistics().keys.get(key)
    return (entry.waiting_puts, entry.waiting_gets) if entry else (0, 0)


@ray.remote(num_cpus=0)
class Peer:
    """A process that uses channels."""

    def process(self) -> int:
        return os.getpid()

    def hold(self, channel: Channel) -> None:
        self.held = channel

    def put(self, channel: Channel, items: list[Any]) -> None:
        for item in items:
            channel.put(item)
        channel.flush()

    def put_sizes(self, channel: Channel, me: int, sizes: list[int]) -> None:
        for number, size in enumerate(sizes):
            channel.put((me, number, np.full(size, number, np.float32)))
        channel.close()

    def get_all(self, channel: Channel) -> list[tuple[int, int]]:
        came = []
        for me, number, values in channel:
            assert (values == number).all()
            came.append((me, number))
        return came

    def get(self, channel: Channel, count: int = 1) -> list[Any]:
        return [channel.get() for _ in range(count)]

    def get_batch(self, channel: Channel, weight: float) -> list[Any]:
        return channel.get_batch(weight)

    def keep(self, channel: Channel, count: int) -> float:
        """Take items and hold the last three."""
        kept: list[Any] = []
        for _ in range(count):
            kept = [*kept[-2:], channel.get()]
        return float(sum(item.sum() for item in kept))

    def leave(self, channel: Channel, *, reads: bool = False) -> None:
        """With `reads`, while it holds an item."""
        if reads:
            self.item = channel.get(timeout=10)
        channel.leave()


@pytest.fixture(scope="module")
def peers(ray_nodes: list[str]) -> Iterator[list[Any]]:
    """Four processes for all tests that end none; in the end they hold no channel's memory."""
    made = [Peer.remote() for _ in range(4)]
    yield made
    processes: list[int] = ray.get([peer.process.remote() for peer in made])
    until(lambda: not any(map(memory, processes)))
    for peer in made:
        ray.kill(peer)


def cause(future: Any) -> Exception:
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(future, timeout=20)
    return caught.value.cause


def error_of(channel: Channel, key: str) -> Exception:
    with pytest.raises(ChannelError) as caught:
        channel.put(1, key)
    return caught.value


@pytest.mark.parametrize("capacity", [3, None])
@pytest.mark.parametrize(("ordered", "shared"), [(True, True), (True, False), (False, True)])
def test_everything_arrives_once_and_in_order(
    peers: list[Any], capacity: int | None, shared: bool, ordered: bool
) -> None:
    channel = Channel.create(capacity=capacity, producers=2, shared_memory=shared, ordered=ordered)
    sizes = [1, 300, 40_000, 9, 70_000, 0] * 5
    sent = [peer.put_sizes.remote(channel, me, sizes) for me, peer in enumerate(peers[:2])]
    came = ray.get([peer.get_all.remote(channel) for peer in peers[2:]], timeout=50)
    ray.get(sent)
    for one in came if ordered else []:
        for me in range(2):
            numbers = [number for who, number in one if who == me]
            assert numbers == sorted(numbers)
    everything = sorted(pair for one in came for pair in one)
    assert everything == [(me, number) for me in range(2) for number in range(len(sizes))]
    assert channel.statistics().keys[None].most <= (capacity or 60)


def test_calls_that_do_not_wait() -> None:
    channel = Channel.create(capacity=2)
    with pytest.raises(Empty):
        channel.get_nowait()
    channel.put_nowait("a")
    channel.put_nowait("b")
    with pytest.raises(Full, match="capacity 2 items"):
        channel.put_nowait("c")
    assert [channel.get_nowait(), channel.get_nowait()] == ["a", "b"]


def test_timeouts_say_who_waits_for_whom() -> None:
    channel = Channel.create(capacity=1)
    with pytest.raises(TimedOut, match=r"get_batch of weight 3 from key 'x' waited 0\.05 s: 0 q"):
        channel.get_batch(3, "x", timeout=0.05)
    channel.put(1, "x")
    with pytest.raises(TimedOut, match=r"(?s)put under key 'x' waited.*process \d+ on"):
        channel.put(2, "x", timeout=0.05)
    with pytest.raises(TimedOut):  # it may wait, if not until its thread has come to ask
        channel.put(2, "x", timeout=1e-9)
    channel.get("x")


def test_full_key_blocks_no_other_in_the_same_process() -> None:
    channel = Channel.create(capacity=1)
    channel.put(1, "full")
    late = threading.Thread(target=channel.put, args=(2, "full"))
    late.start()
    until(lambda: waiting(channel, "full") == (1, 0))
    channel.put(3, "other")
    assert channel.get("other", timeout=10) == 3
    assert [channel.get("full", timeout=10), channel.get("full", timeout=10)] == [1, 2]
    late.join(timeout=10)
    assert not late.is_alive()


def test_concurrent_batches_are_whole(peers: list[Any]) -> None:
    channel = Channel.create()
    batches = [peer.get_batch.remote(channel, 4) for peer in peers[:2]]
    until(lambda: waiting(channel) == (0, 2))
    for number in range(8):
        channel.put(number)
    assert sorted(ray.get(batches, timeout=20)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_batches_that_cannot_be(peers: list[Any]) -> None:
    channel = Channel.create(capacity=2, capacity_bytes=1000)
    batch = peers[0].get_batch.remote(channel, 5)
    until(lambda: waiting(channel) == (0, 1))
    for weight in (0, 1):
        channel.put("x", weight=weight)
    with pytest.raises(TimedOut):
        channel.put("x", timeout=0.5)
    assert isinstance(cause(batch), Stuck)
    with pytest.raises(TooLarge):
        channel.put(b"x" * 1001)
    assert channel.get_batch(1) == ["x", "x"]


def test_name_belongs_to_one_channel_until_it_is_closed() -> None:
    old = Channel.create("name")
    with pytest.raises(NameTaken):
        Channel.create("name")
    Channel.connect("name").put("of the old one")
    assert old.get(timeout=10) == "of the old one"
    old.close()
    with pytest.raises(ChannelError, match="no channel"):
        Channel.connect("name")
    new = Channel.create("name")
    with pytest.raises(Empty):
        Channel.connect("name").get_nowait()
    with pytest.raises(Closed):
        old.put(1)
    with pytest.raises(EndOfStream):
        old.get()
    new.close()


def test_sender_holds_no_more_than_the_capacity() -> None:
    channel = Channel.create(capacity=3)
    items = [np.full(MEGABYTE, number, np.float32) for number in range(8)]
    sender = threading.Thread(target=lambda: [channel.put(item) for item in items])
    sender.start()
    until(lambda: waiting(channel) == (1, 0))
    assert channel.statistics().keys[None].queued == 3
    pool = channel._end.sender._pool
    assert pool is not None
    assert len(pool._maps) == 3
    assert [channel.get(timeout=10)[0] for _ in items] == list(range(8))
    sender.join(timeout=10)


def test_memory_is_used_again_and_never_under_a_reader(peers: list[Any]) -> None:
    channel = Channel.create(capacity=4)
    kept = peers[0].keep.remote(channel, 100)
    for number in range(100):
        channel.put(torch.full((MEGABYTE,), number / MEGABYTE))
    assert ray.get(kept, timeout=30) == pytest.approx(97 + 98 + 99, rel=1e-3)
    pool = channel._end.sender._pool
    assert pool is not None
    assert len(pool._maps) <= 20


def test_failure_is_raised_at_everybody(peers: list[Any]) -> None:
    channel = Channel.create(capacity=1)
    channel.put("full", "k")
    late = threading.Thread(target=lambda: errors.append(error_of(channel, "k")))
    errors: list[Exception] = []
    late.start()
    got = peers[0].get_batch.remote(channel, 9)
    until(lambda: waiting(channel) == (0, 1) and waiting(channel, "k") == (1, 0))
    channel.fail(ValueError("the reason"))
    with pytest.raises(PeerFailed, match=r"process \d+ on .*failed: ValueError: the reason"):
        channel.get()
    late.join(timeout=10)
    assert [type(error) for error in (*errors, cause(got))] == [PeerFailed, PeerFailed]
    with pytest.raises(PeerFailed, match="the reason"):
        channel.put(1)


@pytest.mark.parametrize("role", ["consumer", "producer"])
def test_death_of_a_peer_is_raised_at_the_others(peers: list[Any], role: str) -> None:
    channel = Channel.create()
    victim, other = Peer.remote(), peers[0]
    ray.get(victim.hold.remote(channel))
    process = ray.get(victim.process.remote())
    if role == "consumer":
        victim.get_batch.remote(channel, 5)
        until(lambda: waiting(channel) == (0, 1))
    else:
        ray.get(victim.put.remote(channel, [1]))
        assert channel.get() == 1
    waits = other.get.remote(channel)
    os.kill(process, 9)
    error = cause(waits)
    assert isinstance(error, PeerFailed)
    assert f"process {process} " in str(error)
    with pytest.raises(PeerFailed, match="died without leaving"):
        channel.put(1)


def test_who_has_left_may_die() -> None:
    channel = Channel.create()
    peer = Peer.remote()
    ray.get(peer.put.remote(channel, [1, 2]))
    ray.get(peer.leave.remote(channel))
    process = ray.get(peer.process.remote())
    until(lambda: len(channel.statistics().peers) == 1)
    ray.kill(peer)
    until(lambda: not os.path.exists(f"/proc/{process}"))
    assert [channel.get(timeout=10), channel.get(timeout=10)] == [1, 2]


def test_items_whose_memory_is_gone_are_an_error() -> None:
    channel = Channel.create()
    peer = Peer.remote()
    ray.get(peer.put.remote(channel, [np.zeros(MEGABYTE, np.float32)]))
    ray.get(peer.leave.remote(channel))
    process = ray.get(peer.process.remote())
    until(lambda: len(channel.statistics().peers) == 1)
    os.kill(process, 9)
    until(lambda: not os.path.exists(f"/proc/{process}"))
    with pytest.raises(PeerFailed, match="gone"):
        channel.get(timeout=10)
    channel.fail(RuntimeError("over"))


def test_memory_that_is_read_after_its_process_is_done_is_given_back(peers: list[Any]) -> None:
    channel = Channel.create(shared_memory=True)
    ray.get(peers[0].put.remote(channel, [np.zeros(MEGABYTE, np.float32)]))
    process = ray.get(peers[0].process.remote())
    item = channel.get(timeout=10)
    until(lambda: len(channel.statistics().peers) == 1)
    assert memory(process)
    del item
    with pytest.raises(Empty):
        channel.get_nowait()
    until(lambda: not memory(process))


def test_memory_that_was_read_by_who_was_killed_after_it_left_is_given_back(
    peers: list[Any],
) -> None:
    channel = Channel.create(shared_memory=True)
    ray.get(peers[0].put.remote(channel, [np.zeros(MEGABYTE, np.float32)]))
    reader, process = Peer.remote(), ray.get(peers[0].process.remote())
    ray.get(reader.leave.remote(channel, reads=True))
    until(lambda: len(channel.statistics().peers) == 1)
    assert memory(process)
    os.kill(ray.get(reader.process.remote()), 9)
    until(lambda: not memory(process))


def test_event_loops() -> None:
    async def talk() -> None:
        channel = Channel.create(capacity=2, prioritised=True)
        cancelled = asyncio.create_task(channel.aget_batch(2))
        lone = asyncio.create_task(channel.aget("k"))
        while waiting(channel) != (0, 1) or waiting(channel, "k") != (0, 1):
            await asyncio.sleep(0.01)
        cancelled.cancel()
        lone.cancel()
        await asyncio.gather(cancelled, lone, return_exceptions=True)
        await channel.aput("late", "k")
        assert await channel.aget("k", timeout=10) == "late"
        await channel.aput("low", priority=1)
        await channel.aput("high", priority=2)
        with pytest.raises(Full):
            await channel.aput("no", timeout=0)
        assert await channel.aget_batch(2, timeout=10) == ["high", "low"]
        channel.put("last")
        channel.close()
        assert [item async for item in channel] == ["last"]

    asyncio.run(talk())


def test_prefetched_items_go_to_who_waits(peers: list[Any]) -> None:
    channel = Channel.create()
    for number in range(200):
        channel.put(number)
    channel.flush()
    mine = [channel.get(timeout=10) for _ in range(50)]
    rest = ray.get(peers[0].get.remote(channel, 150), timeout=30)
    assert mine == list(range(50))
    assert sorted(rest) == list(range(50, 200))


def test_actor_that_nobody_needs_any_more_is_no_failure() -> None:
    channel = Channel.create()
    peer = Peer.remote()
    process = ray.get(peer.process.remote())
    ray.get(peer.put.remote(channel, [1, 2]))
    del peer
    until(lambda: not os.path.exists(f"/proc/{process}"))
    until(lambda: len(channel.statistics().peers) == 1)
    assert [channel.get(timeout=10), channel.get(timeout=10)] == [1, 2]
