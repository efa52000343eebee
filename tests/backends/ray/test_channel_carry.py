"""Items arrive as they were sent."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rlinf_graph.backends.ray.channel import carry, shared
from rlinf_graph.backends.ray.channel.shared import Pool, Window


def together(items: list[Any]) -> list[Any]:
    """Through one block, as small items."""
    packer = carry.Packer()
    assert [packer.add(carry.encode(item)) for item in items] == list(range(len(items)))
    opened = carry.Opened(packer.block(), None)
    return [opened.read(index, copied=False) for index in range(len(items))]


def alone(item: Any) -> Any:
    """Through shared memory, as a large item."""
    pool, encoded = Pool("p"), carry.encode(item)
    found = pool.take(carry.room(encoded))
    assert found is not None
    block = carry.large(encoded, found[1])
    freed: list[int] = []
    value = carry.Opened(block, Window().open(found[0])).read_whole(lambda: freed.append(1))
    del encoded, block
    return value


def test_segments_of_a_size_that_is_not_needed_any_more_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared, "SEGMENTS", 2)
    pool, window = Pool("p"), Window()
    small = [pool.take(1), pool.take(1)]
    assert all(small)
    assert pool.take(1) is None
    for found in small:
        assert found is not None
        found[1][:3] = b"old"[0]
        assert bytes(window.open(found[0])[:3]) == b"ooo"
        pool.give_back(found[0])
    large = [pool.take(3 << 20), pool.take(3 << 20)]
    for found in large:  # under the descriptors of those before
        assert found is not None
        found[1][:3] = b"new"[0]
        assert bytes(window.open(found[0])[:3]) == b"nnn"
        assert found[0].descriptor in {s[0].descriptor for s in small if s}
    assert pool.take(1) is None
    assert pool.in_use()


DTYPES = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="="),
    arrays.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    arrays.complex_number_dtypes(endianness="=", sizes=(64, 128)),
    arrays.unicode_string_dtypes(endianness="="),
    arrays.datetime64_dtypes(endianness="="),
)
ARRAYS = arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, min_side=0, max_side=4))


@settings(max_examples=60, deadline=None)
@given(st.lists(ARRAYS, min_size=1, max_size=4))
def test_arrays(values: list[np.ndarray[Any, Any]]) -> None:
    for sent, came in zip(values, together(values), strict=True):
        assert came.dtype == sent.dtype
        np.testing.assert_array_equal(came, sent)
    np.testing.assert_array_equal(alone(values[0]), values[0])


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 2)], ids=str)
def test_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = torch.ones(shape).to(dtype).requires_grad_(dtype.is_floating_point)
    for came in [*together([b"odd", sent])[1:], alone(sent), alone({"x": [sent]})["x"][0]]:
        assert came.dtype == dtype
        assert torch.equal(came, sent)
        came.mul_(0) if dtype is not torch.bool else came.zero_()


def test_tensors_of_strange_strides() -> None:
    sent = torch.arange(12.0).reshape(3, 4).T[::2].conj()
    assert torch.equal(together([sent])[0], sent)


@dataclasses.dataclass
class Sample:
    """Something that a user sends."""

    text: str
    tokens: torch.Tensor
    rewards: np.ndarray[Any, Any]


@pytest.mark.parametrize("way", [lambda item: together([item])[0], alone])
def test_nested_items(way: Any) -> None:
    sent = Sample("x", torch.arange(5, dtype=torch.bfloat16), np.arange(30_000.0))
    came = way(sent)
    assert came.text == "x"
    assert torch.equal(came.tokens, sent.tokens)
    np.testing.assert_array_equal(came.rewards, sent.rewards)
    came.tokens[0] = 3


@pytest.mark.parametrize("item", [None, 3, "text", b"", b"bytes", [1, {2}], lambda: 4], ids=repr)
def test_other_objects(item: Any) -> None:
    came = together([item])[0]
    assert came() == 4 if callable(item) else came == item


def test_items_do_not_follow_their_source() -> None:
    source = np.zeros(3)
    packer = carry.Packer()
    packer.add(carry.encode(source))
    source[:] = 1
    assert carry.Opened(packer.block(), None).read(0, copied=False).tolist() == [0, 0, 0]


def test_items_alike_share_a_layout_and_are_read_in_any_order() -> None:
    items: list[Any] = [np.full((2, 3), i, np.int16) for i in range(5)]
    items += [b"odd", np.int8(1) * np.ones(3, np.int8), np.array(7.5)]
    items += [torch.full((2,), float(i)) for i in range(3)]
    packer = carry.Packer()
    for item in items:
        packer.add(carry.encode(item))
    block = packer.block()
    assert packer.items == 0
    assert [layout.count for layout in block.layouts] == [5, 1, 1, 1, 3]
    opened = carry.Opened(block, None)
    for index in (4, 0, 10, 6, 7, 5, 8, 3):
        came = opened.read(index, copied=bool(index % 2))
        assert type(came) is type(items[index])
        np.testing.assert_array_equal(came, items[index])


def test_memory_is_free_when_the_last_view_is_gone() -> None:
    pool = Pool("p")
    encoded = carry.encode({"a": np.ones(100_000), "b": torch.ones(3)})
    found = pool.take(carry.room(encoded))
    assert found is not None
    segment, memory = found
    freed: list[int] = []
    opened = carry.Opened(carry.large(encoded, memory), Window().open(segment))
    value = opened.read_whole(lambda: freed.append(1))
    part = value["b"][1:].view(1, 2)
    del value
    assert freed == []
    del part
    assert freed == [1]


def test_pool_uses_warm_memory_first_and_ends() -> None:
    pool = Pool("p")
    first = pool.take(10)
    assert first is not None
    pool.give_back(first[0])
    again = pool.take(1 << 20)
    assert again is not None
    assert again[0] == first[0]
    assert pool.take(1 << 40) is None
