"""The stress test's model finds what it is there to find."""

from __future__ import annotations

from typing import Any

import pytest

from tests.backends.ray.channel_model import Log, Model
from tests.backends.ray.channel_party import Event
from tests.backends.ray.channel_scenario import Drain, Get, Party, Scenario

PRODUCER, CONSUMER, OTHER = 0, 1, 2


def scene(consumers: int = 1, **options: Any) -> Scenario:
    """A producer and consumers of one key."""
    none = {"capacity": None, "capacity_bytes": None, "prioritised": False, "ordered": False}
    drain = (Drain(0, (Get(0, 1, "get", 0.0, None),)),)
    parties = (Party(0, ()), *(Party(n, drain) for n in range(1, consumers + 1)))
    return Scenario(none | options, False, (parties,), (False,))


def put(number: int, at: float, **more: Any) -> Event:
    return Event("put", 0, ((PRODUCER, number),), at, at, weight=more.pop("weight", 1.0), **more)


def got(at: float, *numbers: int, target: float = 0.0) -> Event:
    """Items taken in no time."""
    what = "batch" if target else "got"
    return Event(what, 0, tuple((PRODUCER, number) for number in numbers), at, at, weight=target)


def closed(at: float) -> Event:
    return Event("known", 0, (), at, at)


def faults(scenario: Scenario, puts: list[Event], *gots: list[Event]) -> str:
    log: Log = {PRODUCER: puts, **dict(enumerate(gots, start=CONSUMER))}
    return "\n".join(Model(scenario, log).faults)


def test_good_log_has_no_faults() -> None:
    puts = [put(1, 1), put(2, 2), put(3, 3), closed(4)]
    gots = [got(5, 1), got(6, 2, 3, target=2.0)]
    assert faults(scene(capacity=3, prioritised=True), puts, gots) == ""


@pytest.mark.parametrize(
    ("told", "gots"),
    [
        (r"lost: \[\(0, 2\)\]", [got(5, 1)]),
        (r"twice: \[\(0, 1\)\]", [got(5, 1), got(6, 2), got(7, 1)]),
        (r"its put said no: \[\(0, 3\)\]", [got(5, 1), got(6, 2), got(7, 3)]),
        (r"taken after a younger", [got(5, 2), got(6, 1)]),
        (r"another key", [got(5, 1), got(6, 2)._replace(key=1)]),
        (r"more than needed", [got(5, 1, 2, target=1.0)]),
        (r"several light", [got(5, 1, target=3.0), got(6, 2, target=3.0)]),
        (r"before the end", [got(2.5, 1, 2, target=3.0)]),
        (r"before the last", [got(5, 1, target=3.0), got(6, 2)]),
    ],
)
def test_model_sees(told: str, gots: list[Event]) -> None:
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(faults(scene(), [put(1, 1), put(2, 2), closed(4)], gots))


def test_order_between_consumers_is_for_ordered_channels() -> None:
    puts, gots = [put(1, 1), put(2, 2), closed(4)], ([got(5, 2)], [got(6, 1)])
    assert faults(scene(2), puts, *gots) == ""
    assert "taken after a younger" in faults(scene(2, ordered=True), puts, *gots)


@pytest.mark.parametrize("capacity", [{"capacity": 1}, {"capacity_bytes": 9}])
def test_capacity_holds_for_what_was_put_before_it_is_taken(capacity: dict[str, int]) -> None:
    puts = [put(1, 1, nbytes=5), put(2, 2, nbytes=5), closed(3)]
    assert faults(scene(**capacity), puts, [got(1.5, 1), got(4, 2)]) == ""
    assert "2 under key" in faults(scene(capacity=1), puts, [got(2.5, 1), got(4, 2)])
    assert "10 under key" in faults(scene(capacity_bytes=9), puts, [got(2.5, 1), got(4, 2)])


def test_urgent_items_that_are_known_come_first() -> None:
    puts = [put(1, 1, priority=0), put(2, 2, priority=1), closed(3)]
    late, early = [got(4, 1), got(5, 2)], [got(2.5, 1), got(5, 2)]
    assert "more urgent" in faults(scene(prioritised=True), puts, late)
    assert faults(scene(prioritised=True), puts, early) == ""
    batch = [got(4, 1, 2, target=2.0)]
    assert "most urgent first" in faults(scene(prioritised=True), puts, batch)
