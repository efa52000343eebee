"""A segment is free when all of its items have been read, or those who took them are gone."""

from __future__ import annotations

import asyncio
import itertools
import subprocess

from rlinf_graph.backends.ray.channel.broker import Broker
from rlinf_graph.backends.ray.channel.carry import Block
from rlinf_graph.backends.ray.channel.lane import Item, Limits
from rlinf_graph.backends.ray.channel.peers import Peer, machine
from rlinf_graph.backends.ray.channel.reading import Reading
from rlinf_graph.backends.ray.channel.shared import Segment

SEGMENT = Segment("producer", 1, 5, 1 << 20, 0)


def items(count: int, segment: Segment = SEGMENT) -> list[Item]:
    """In one run."""
    return [Item(0, 0, 1.0, 1, Block([], segment), 0, count)]


def test_free_when_all_items_have_been_read() -> None:
    reading = Reading()
    reading.came(items(3)[0].block, 3)
    reading.took("a", items(2))
    reading.took("b", items(1))
    reading.read("a", [(SEGMENT, 2)])
    assert reading.freed("producer") == []
    assert (reading.reads("a"), reading.reads("b")) == (False, True)
    reading.read("b", [(SEGMENT, 1)])
    assert reading.freed("producer") == [SEGMENT]
    assert reading.freed("producer") == []


def test_what_a_process_had_taken_is_not_read_once_it_is_gone() -> None:
    reading = Reading()
    reading.came(items(3)[0].block, 3)
    reading.took("a", items(3))
    reading.read("a", [(SEGMENT, 1)])
    reading.gone("a")
    assert reading.freed("producer") == [SEGMENT]
    assert not reading.reads("a")


def test_what_is_left_for_others_is_not_free_when_a_process_is_gone() -> None:
    reading = Reading()
    reading.came(items(3)[0].block, 3)
    reading.took("a", items(2))
    reading.gone("a")
    assert reading.freed("producer") == []
    reading.took("b", items(1))
    reading.read("b", [(SEGMENT, 1)])
    assert reading.freed("producer") == [SEGMENT]


def test_what_a_process_told_may_come_after_its_end_was_seen() -> None:
    """Nothing is subtracted twice: the segment may be in use again by then."""
    reading = Reading()
    reading.came(items(2)[0].block, 2)
    reading.took("a", items(2))
    reading.gone("a")
    assert reading.freed("producer") == [SEGMENT]
    reading.came(items(1)[0].block, 1)
    reading.read("a", [(SEGMENT, 2)])
    assert reading.freed("producer") == []
    assert not reading.reads("a")
    reading.took("a", items(1))  # news that was older than its end
    assert reading.freed("producer") == [SEGMENT]


def test_an_end_that_two_look_for_is_seen_once() -> None:
    """The death watch goes on, also while a consumer asks for the cause of a loss."""
    ended = subprocess.Popen(["true"])
    ended.wait()

    async def look() -> Broker:
        broker = Broker(Limits())
        for name in ("a", "b"):
            reader = Peer(name, name, machine(), ended.pid, "")
            broker._peers[name] = reader
            broker._exchange.reading.took(name, items(1))
            broker._forget(name)
        await asyncio.gather(*(broker._look_at_peers() for _ in range(3)))
        return broker

    broker = asyncio.run(look())
    assert not broker._left
    assert not broker._exchange.reading.reads("a")


def test_news_may_come_in_any_order() -> None:
    for order in itertools.permutations(["took", "read", "read"]):
        reading = Reading()
        reading.came(items(2)[0].block, 2)
        for what in order:
            reading.took("a", items(2)) if what == "took" else reading.read("a", [(SEGMENT, 1)])
        assert not reading.reads("a")
        assert reading.freed("producer") == [SEGMENT]
