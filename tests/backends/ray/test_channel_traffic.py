"""The state of a channel under any traffic, against a simple model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rlinf_graph.backends.ray.channel.errors import ChannelError, EndOfStream
from rlinf_graph.backends.ray.channel.lane import Given, Item, Limits, Row
from rlinf_graph.backends.ray.channel.state import Exchange


def numbers_of(items: Iterable[Item]) -> list[int]:
    """All sequence numbers."""
    return [item.sequence + number for item in items for number in range(item.count)]


def spans_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbours together, in their order."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and sum(spans[-1]) == number:
            spans[-1] = spans[-1][0], spans[-1][1] + 1
        else:
            spans.append((number, 1))
    return spans


PEERS, KEYS = st.sampled_from("pqr"), st.sampled_from("ab")


class Traffic(RuleBasedStateMachine):
    """Producers, consumers, keys, batches, prefetch, leaving and closing in any order."""

    items: float = 5
    nbytes: float = 12
    ordered: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[Any, Any] = {}
        limits = Limits(self.items, self.nbytes, producers=2, ordered=self.ordered)
        self.exchange = Exchange(limits, self.answer)
        self.numbers = itertools.count()
        self.goals: dict[Any, float] = {}
        self.newest: dict[tuple[str, str], int] = {}
        self.put_in: dict[str, list[int]] = {"a": [], "b": []}
        self.got: dict[str, list[int]] = {"a": [], "b": []}
        self.leased: dict[tuple[str, str], list[int]] = {}
        self.held: dict[tuple[str, str], list[int]] = {}

    def answer(self, ticket: Any, answer: Any) -> None:
        """Every ticket is answered once."""
        assert ticket not in self.answers
        self.answers[ticket] = answer
        what, peer, key, _number = ticket
        if isinstance(answer, ChannelError):
            return
        if what == "lease":
            items, nbytes = answer
            have = self.leased.setdefault((peer, key), [0, 0])
            have[0], have[1] = have[0] + items, have[1] + nbytes
            return
        assert isinstance(answer, Given)
        numbers = numbers_of(answer.items)
        queue = self.exchange.lanes[key].queue
        assert numbers == sorted(numbers)
        assert all(item.sequence > numbers[-1] for item in queue)
        self.got[key] += numbers[: answer.taken]
        self.held.setdefault((peer, key), []).extend(numbers[answer.taken :])
        self.see(peer, key, numbers[: answer.taken])
        if what == "batch":
            target = self.goals[ticket]
            weights = [item.weight for item in answer.items for _ in range(item.count)]
            assert sum(weights[:-1]) < target or len(weights) == 1
            assert sum(weights) >= target or self.exchange.closed

    def see(self, peer: str, key: str, numbers: list[int]) -> None:
        """A consumer reads items."""
        seen = [self.newest.get((peer, key), 0), *numbers]
        assert not self.ordered or seen == sorted(seen)
        self.newest[peer, key] = seen[-1]

    @rule(
        peer=PEERS, key=KEYS, nbytes=st.integers(0, 13), ask=st.integers(1, 9), wait=st.booleans()
    )
    def lease(self, peer: str, key: str, nbytes: int, ask: int, wait: bool) -> None:
        ticket = ("lease", peer, key, next(self.numbers))
        self.exchange.lease(ticket, peer, key, nbytes, ask, wait=wait)
        assert wait or ticket in self.answers

    @rule(peer=PEERS, key=KEYS, weights=st.lists(st.integers(0, 3), max_size=4), data=st.data())
    def put(self, peer: str, key: str, weights: list[int], data: st.DataObject) -> None:
        items, nbytes = self.leased.get((peer, key), [0, 0])
        counts = [data.draw(st.integers(1, 3)) for _ in weights]
        most = nbytes // max(1, sum(counts))
        rows = [
            Row(0, weight, data.draw(st.integers(0, most)), 0, count)
            for weight, count in zip(weights, counts, strict=True)
        ]
        before, items_put = self.exchange._sequence, sum(counts)
        if rows and items_put <= items:
            have = self.leased[peer, key]
            size = sum(row.nbytes * row.count for row in rows)
            have[0], have[1] = have[0] - items_put, have[1] - size
            self.put_in[key] += range(before, before + items_put)
            more = self.exchange.put(peer, key, "block", rows, data.draw(st.integers(0, 4)))
            have[0], have[1] = have[0] + more[0], have[1] + more[1]

    @rule(peer=PEERS, key=KEYS)
    def give_back(self, peer: str, key: str) -> None:
        self.exchange.give_back(peer, key, *self.leased.pop((peer, key), [0, 0]))

    @rule(peer=PEERS, key=KEYS, count=st.integers(1, 5), wait=st.booleans(), own=st.booleans())
    def get(self, peer: str, key: str, count: int, wait: bool, own: bool) -> None:
        ticket = ("get", peer, key, next(self.numbers))
        self.exchange.take(ticket, peer, key, count, wait=wait, own=own)
        assert wait or ticket in self.answers

    @rule(peer=PEERS, key=KEYS, goal=st.integers(0, 6), wait=st.booleans(), own=st.booleans())
    def batch(self, peer: str, key: str, goal: int, wait: bool, own: bool) -> None:
        ticket = ("batch", peer, key, next(self.numbers))
        self.goals[ticket] = goal
        self.exchange.take(ticket, peer, key, 1, goal, wait=wait, own=own)
        assert wait or isinstance(self.answers[ticket], Given | ChannelError)

    @rule(peer=PEERS, key=KEYS, count=st.integers(1, 5))
    def ahead(self, peer: str, key: str, count: int) -> None:
        items = self.exchange.ahead(peer, key, count)
        self.held.setdefault((peer, key), []).extend(numbers_of(items))

    @rule(peer=PEERS, key=KEYS, count=st.integers(0, 5), back=st.booleans())
    def settle(self, peer: str, key: str, count: int, back: bool) -> None:
        held = self.held.get((peer, key), [])
        taken, self.held[peer, key] = held[:count], [] if back else held[count:]
        self.got[key] += taken
        self.see(peer, key, taken)
        self.exchange.confirm(peer, key, spans_of(taken))
        if back:
            self.exchange.put_back(peer, key, spans_of(held[count:]))

    @rule(peer=PEERS)
    def leave(self, peer: str) -> None:
        for key in "ab":
            self.leased.pop((peer, key), None)
            self.held.pop((peer, key), None)
        waiting = self.waiting(peer)
        self.exchange.leave(peer)
        self.answers.update(dict.fromkeys(waiting - set(self.answers)))

    @rule(peer=PEERS)
    def close(self, peer: str) -> None:
        self.exchange.close(peer)

    def waiting(self, peer: str) -> set[Any]:
        lanes = self.exchange.lanes.values()
        return {w.ticket for lane in lanes for w in [*lane.rooms, *lane.wants] if w.peer == peer}

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        for key, lane in list(self.exchange.lanes.items()):
            held = [s for (_peer, at), some in self.held.items() if at == key for s in some]
            known = numbers_of(lane.queue) + held + self.got[key]
            assert sorted(known) == self.put_in[key]

    @invariant()
    def capacity_holds(self) -> None:
        for key, lane in list(self.exchange.lanes.items()):
            leased = [have for (_peer, at), have in self.leased.items() if at == key]
            there = [*lane.queue, *(i for some in lane.held.values() for i in some.values())]
            count = sum(item.count for item in there) + sum(have[0] for have in leased)
            assert lane.items == count <= self.items
            size = sum(item.nbytes * item.count for item in there) + sum(h[1] for h in leased)
            assert lane.nbytes == size <= self.nbytes
            assert lane.queued == sum(item.count for item in lane.queue)
            weight = sum(item.weight * item.count for item in lane.queue)
            assert math.isclose(lane.weight, weight)

    @invariant()
    def nobody_waits_without_need(self) -> None:
        for lane in self.exchange.lanes.values():
            if lane.rooms:
                assert not self.exchange._fits(lane, lane.rooms[0].nbytes)
            free = not (self.ordered and any(lane.held.values()))
            if lane.wants and lane.queue and free:
                target = lane.wants[0].target
                assert target is not None
                assert lane.weight < target

    def teardown(self) -> None:
        """Whatever has happened, everything that was put can be taken to the end."""
        for peer in "pqr":
            self.leave(peer)
        for peer in "pq":
            self.exchange.close(peer)
        for key in "ab":
            for _ in range(len(self.put_in[key]) + 1):
                self.get("c", key, 1, False, True)
            last = max(number for _w, _p, _k, number in self.answers)
            assert isinstance(self.answers["get", "c", key, last], EndOfStream)
            assert sorted(self.got[key]) == self.put_in[key]


class Unlimited(Traffic):
    """Without capacities."""

    items = nbytes = math.inf


class Ordered(Traffic):
    """No consumer sees an item after a younger one."""

    ordered = True


TestOrdered = Ordered.TestCase
TestOrdered.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestUnlimited = Unlimited.TestCase
TestUnlimited.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
