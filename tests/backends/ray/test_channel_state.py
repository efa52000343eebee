"""The state of a channel, against faults known from other channels and a simple model."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rlinf_graph.backends.ray.channel.errors import (
    ChannelError,
    Closed,
    Empty,
    EndOfStream,
    Full,
    PeerFailed,
    Stuck,
    TooLarge,
)
from rlinf_graph.backends.ray.channel.lane import Limits, Row
from rlinf_graph.backends.ray.channel.state import Exchange


class Desk:
    """An exchange and its answers; every put asks for a lease of one item first."""

    def __init__(self, **limits: Any) -> None:
        self.answers: dict[Any, Any] = {}
        self.exchange = Exchange(Limits(**limits), self.answers.__setitem__)
        self.numbers = itertools.count()

    def put(self, key: str, weight: float = 1, nbytes: int = 1, peer: str = "p") -> Any:
        """The answer to the lease, after which the item is put; None while it waits."""
        ticket = next(self.numbers)
        self.exchange.lease(ticket, peer, key, nbytes, 1)
        answer = self.answers.get(ticket)
        if isinstance(answer, tuple):
            self.exchange.put(peer, key, "block", [Row(0, weight, nbytes, 0)], 0)
        return answer

    def get(self, key: str, target: float | None = None, **options: Any) -> int:
        ticket = next(self.numbers)
        self.exchange.take(ticket, options.pop("peer", "c"), key, 1, target, **options)
        return ticket

    def weights(self, ticket: Any) -> list[float]:
        return [item.weight for item in self.answers[ticket].items for _ in range(item.count)]


def test_put_that_may_not_wait_is_refused_when_the_key_is_full() -> None:
    desk = Desk(items=1)
    desk.put("a")
    desk.exchange.lease("now", "q", "a", 1, 1, wait=False)
    assert isinstance(desk.answers["now"], Full)


def test_backlog_on_one_key_does_not_block_another() -> None:
    desk = Desk(items=1)
    desk.put("a")
    assert desk.put("a") is None
    assert desk.put("b") == (1, 1)
    assert desk.weights(desk.get("b")) == [1]


def test_concurrent_batches_do_not_take_half_each() -> None:
    desk = Desk()
    first, second = desk.get("a", 4), desk.get("a", 4, peer="d")
    for weight in (1, 1, 1, 1):
        desk.put("a", weight)
    assert desk.weights(first) == [1, 1, 1, 1]
    assert second not in desk.answers
    for weight in (2, 2):
        desk.put("a", weight)
    assert desk.weights(second) == [2, 2]


def test_ordered_channel_gives_nothing_younger_than_what_the_same_process_holds() -> None:
    desk = Desk(ordered=True)
    for weight in (1, 2, 3, 4):
        desk.put("a", weight)
    desk.exchange.take("thread", "c", "a", 3)
    assert desk.weights("thread") == [1, 2, 3]
    desk.exchange.take("other", "c", "a", 3)
    assert "other" not in desk.answers
    held = [(item.sequence, item.count) for item in desk.answers["thread"].items[1:]]
    desk.exchange.put_back("c", "a", held)
    assert desk.weights("other")[0] == 2


def test_first_item_that_is_heavier_than_the_target_comes_alone() -> None:
    desk = Desk()
    for weight in (9, 1):
        desk.put("a", weight)
    assert desk.weights(desk.get("a", 4)) == [9]


def test_weightless_items_come_with_the_batch_and_at_the_end() -> None:
    desk = Desk()
    for weight in (0, 3, 0, 0):
        desk.put("a", weight)
    assert desk.weights(desk.get("a", 3)) == [0, 3]
    waiting = desk.get("a", 3)
    assert waiting not in desk.answers
    desk.exchange.close("p")
    assert desk.weights(waiting) == [0, 0]
    assert isinstance(desk.answers[desk.get("a", 3)], EndOfStream)


def test_target_of_zero_is_one_item() -> None:
    desk = Desk()
    waiting = desk.get("a", 0)
    assert waiting not in desk.answers
    desk.put("a", 0)
    assert desk.weights(waiting) == [0]


def test_batch_that_a_full_key_can_never_give_is_an_error() -> None:
    desk = Desk(items=2)
    desk.put("a", 0)
    desk.put("a", 1)
    waiting = desk.get("a", 3)
    assert waiting not in desk.answers
    assert desk.put("a", 1) is None
    assert isinstance(desk.answers[waiting], Stuck)
    assert desk.weights(desk.get("a")) == [0]


def test_capacity_counts_what_is_leased_and_held() -> None:
    desk = Desk(items=4)
    exchange = desk.exchange
    exchange.lease(0, "p", "a", 1, 1)
    exchange.lease(1, "q", "a", 1, 1)
    exchange.put("p", "a", "block", [Row(0, 1, 1, 0)], 0)
    assert exchange.lanes["a"].items == 2
    held = exchange.ahead("c", "a", 8)
    assert exchange.lanes["a"].items == 2
    exchange.confirm("c", "a", [(held[0].sequence, 1)])
    assert exchange.lanes["a"].items == 1


def test_items_larger_than_the_capacity_are_refused() -> None:
    assert isinstance(Desk(nbytes=10).put("a", nbytes=11), TooLarge)


def test_higher_priority_comes_first_and_age_decides_among_equals() -> None:
    desk = Desk(prioritised=True)
    desk.exchange.lease(0, "p", "a", 4, 4)
    rows = [Row(i, i, 1, priority) for i, priority in enumerate((0, 5, 5, 1))]
    desk.exchange._grant(desk.exchange.lanes["a"], "p", 4, 4)
    desk.exchange.put("p", "a", "block", rows, 0)
    assert [desk.weights(desk.get("a"))[0] for _ in rows] == [1, 2, 3, 0]


def test_stream_ends_only_when_leased_and_held_items_are_accounted_for() -> None:
    desk = Desk()
    desk.exchange.lease("l", "p", "a", 1, 1)
    desk.exchange.close("q")
    waiting = desk.get("a")
    assert waiting not in desk.answers
    desk.exchange.put("p", "a", "block", [Row(0, 7, 1, 0)], 0)
    assert desk.weights(waiting) == [7]
    assert isinstance(desk.put("a"), Closed)


def test_who_leaves_takes_nothing_along() -> None:
    desk = Desk()
    for weight in (1, 2, 3):
        desk.put("a", weight)
    assert [item.weight for item in desk.exchange.ahead("c", "a", 2)] == [1, 2]
    desk.exchange.leave("c")
    assert [desk.weights(desk.get("a", peer="d"))[0] for _ in range(3)] == [1, 2, 3]


def test_first_failure_is_everybodys() -> None:
    desk = Desk(items=1)
    desk.put("a")
    waiting_get, put = desk.get("b"), desk.put("a")
    assert put is None
    first = PeerFailed("first")
    desk.exchange.fail(first)
    desk.exchange.fail(PeerFailed("second"))
    assert desk.answers[waiting_get] is first
    assert desk.put("c") is first
    assert desk.answers[desk.get("c")] is first


def test_put_without_a_lease_is_an_error() -> None:
    with pytest.raises(ChannelError, match="lease"):
        Desk().exchange.put("p", "a", "block", [Row(0, 1, 1, 0)], 0)


def test_get_that_may_not_wait_leaves_items_to_those_who_wait() -> None:
    desk = Desk()
    batch = desk.get("a", 2)
    desk.put("a")
    assert isinstance(desk.answers[desk.get("a", peer="d", wait=False)], Empty)
    desk.put("a")
    assert desk.weights(batch) == [1, 1]
