"""Cutting, joining and ordering lose and reorder nothing."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Values


def values(lengths: list[int]) -> Values:
    n, total = len(lengths), sum(lengths)
    return Values(
        index=torch.arange(n),
        group=torch.arange(n) // 2,
        lengths=torch.tensor(lengths, dtype=torch.int64),
        values=torch.arange(total + n, dtype=torch.float64),
        mask=torch.arange(total) % 3 == 0,
    )


def same(a: Values, b: Values) -> bool:
    names = ("index", "group", "lengths", "values", "mask")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


lengths = st.lists(st.integers(0, 5), min_size=1, max_size=8)


@given(lengths=lengths, data=st.data())
def test_cutting_and_joining_gives_the_batch_back(lengths: list[int], data: st.DataObject) -> None:
    batch = values(lengths)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(lengths)), max_size=3)))
    edges = [0, *cuts, len(lengths)]
    parts = [packed.select(batch, range(a, b)) for a, b in itertools.pairwise(edges)]
    assert same(packed.concat(parts), batch)


@given(lengths=lengths, data=st.data())
def test_order_by_index_undoes_any_permutation(lengths: list[int], data: st.DataObject) -> None:
    batch = values(lengths)
    order = data.draw(st.permutations(range(len(lengths))))
    assert same(packed.in_order(packed.select(batch, order)), batch)


def test_a_row_brings_its_own_tokens() -> None:
    chosen = packed.select(values([2, 0, 3]), [2, 0])
    assert chosen.lengths.tolist() == [3, 2]
    assert chosen.values.tolist() == [4.0, 5.0, 6.0, 7.0, 0.0, 1.0, 2.0]


def test_bytes_are_those_of_the_tensors() -> None:
    batch = values([2, 1])
    tensors = (batch.index, batch.group, batch.lengths, batch.values, batch.mask)
    assert packed.nbytes(batch) == sum(t.numel() * t.element_size() for t in tensors)


def test_nothing_to_join_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        packed.concat([])


def test_values_without_the_last_of_each_sample() -> None:
    assert packed.drop_last(values([2, 1])).tolist() == [0.0, 1.0, 3.0]
    assert np.asarray(packed.drop_last(values([0]))).tolist() == []


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_runs_are_what_a_selection_is(lengths: list[int], data: st.DataObject) -> None:
    batch = values(lengths)
    order = np.asarray(data.draw(st.permutations(range(len(lengths)))))
    start = data.draw(st.integers(0, len(lengths)))
    stop = data.draw(st.integers(start, len(lengths)))
    run = packed.Runs(batch, order)(start, stop)
    assert same(run, packed.select(batch, order[start:stop]))


def test_a_run_of_a_field_is_cut_when_it_is_read() -> None:
    run = packed.Runs(values([2, 1, 3]), np.array([2, 0, 1]))(0, 2)
    assert "values" not in vars(run)
    read = run.values
    assert run.values is read
    assert same(pickle.loads(pickle.dumps(run)), run)
    with pytest.raises(AttributeError, match="no field `value`"):
        _ = run.value  # pyright: ignore[reportAttributeAccessIssue]  that is the test


@given(st.integers(1, 4), st.integers(0, 2), st.permutations(range(5)))
def test_equal_lengths_stand_where_any_would(length: int, extra: int, order: list[int]) -> None:
    lengths, rows = np.full(5, length), np.asarray(order)
    whole = packed.positions(lengths, extra, rows)
    assert whole.tolist() == packed.positions(lengths, extra, rows, np.True_).tolist()
