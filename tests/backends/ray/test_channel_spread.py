"""Consumers that work in step get equal shares."""

from __future__ import annotations

from itertools import product
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlinf_graph.backends.ray.channel.channel import Channel
from rlinf_graph.backends.ray.channel.spread import Spread


class Desk:
    """Notes what is put, as a channel would hold it."""

    def __init__(self) -> None:
        self.held: dict[Any, list[Any]] = {}

    def put(self, item: Any, key: Any, *, weight: float) -> None:
        self.held.setdefault(key, []).append((item, weight))

    def loads(self, keys: str) -> list[float]:
        return [sum(weight for _item, weight in self.held.get(key, [])) for key in keys]


def spread(keys: str) -> tuple[Desk, Spread]:
    desk = Desk()
    return desk, Spread(cast("Channel", desk), keys)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7))
def test_no_share_is_a_third_above_the_best(weights: list[int]) -> None:
    desk, made = spread("abc")
    made.put(range(len(weights)), weights)
    best = min(
        max(sum(w for w, at in zip(weights, places, strict=True) if at == key) for key in range(3))
        for places in product(range(3), repeat=len(weights))
    )
    assert max(desk.loads("abc")) <= (4 / 3 - 1 / 9) * best


def test_earlier_items_count_and_order_is_kept() -> None:
    desk, made = spread("ab")
    assert made.put(["long"], [10]) == ["a"]
    assert made.put(["x", "y", "z"], [1, 3, 2]) == ["b", "b", "b"]
    assert [item for item, _weight in desk.held["b"]] == ["x", "y", "z"]
    made.put(["w"], [5])
    assert desk.loads("ab") == [10, 11]


@pytest.mark.parametrize("keys", ["", "aa"])
def test_keys_are_there_and_different(keys: str) -> None:
    with pytest.raises(ValueError, match="one key for each consumer"):
        spread(keys)


def test_every_item_has_a_weight() -> None:
    with pytest.raises(ValueError, match="2 items and 1 weights"):
        spread("a")[1].put([1, 2], [1])
