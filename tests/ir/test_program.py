"""Positions select every sample once, whatever the cut."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlinf_graph.ir.position import Part, Position, Select
from rlinf_graph.ir.program import Repeat, Run, Send, When, unroll

degrees = st.integers(1, 4)


def all_rows(select: Select, total: int, ranks: int, epoch: int = 0) -> list[int]:
    """The rows of all positions of an epoch, in the order of minibatches and micro-batches."""
    outer = "chunk" if select.part is Part.CHUNK else "minibatch"
    rows: list[int] = []
    for index, micro, rank in product(
        range(select.count), range(select.micro_batches), range(ranks)
    ):
        at = Position(3, rank, epoch=epoch, micro_batch=micro, **{outer: index})
        rows += select.rows(at, total, ranks, seed=5).tolist()
    return rows


@given(count=degrees, micro=degrees, ranks=degrees, times=st.integers(1, 3))
def test_minibatches_are_slices_in_dispatch_order(
    count: int, micro: int, ranks: int, times: int
) -> None:
    total = count * micro * ranks * times
    select = Select(Part.MINIBATCH, count, micro, permute=True)
    assert all_rows(select, total, ranks) == list(range(total))


@given(count=degrees, micro=degrees, ranks=degrees)
def test_later_epochs_take_the_same_samples_in_one_order_for_every_cut(
    count: int, micro: int, ranks: int
) -> None:
    total = count * 48
    rows = all_rows(Select(Part.MINIBATCH, count, micro, permute=True), total, ranks, epoch=1)
    plain = all_rows(Select(Part.MINIBATCH, count, 1, permute=True), total, 1, epoch=1)
    assert sorted(rows) == list(range(total))
    assert rows == plain
    assert rows != list(range(total))


@given(count=degrees, ranks=degrees, total=st.integers(0, 40))
def test_chunks_that_do_not_divide_differ_by_one_sample(count: int, ranks: int, total: int) -> None:
    select = Select(Part.CHUNK, count)
    assert all_rows(select, total, ranks) == list(range(total))
    sizes = [len(select.rows(Position(0, r), total, ranks)) for r in range(ranks)]
    assert max(sizes) - min(sizes) <= 1


def test_everything_means_everything_on_every_rank() -> None:
    assert np.array_equal(Select(Part.ALL).rows(Position(0, 1), 5, ranks=2), np.arange(5))


def test_loops_unroll_outside_in_and_rare_bodies_run_rarely() -> None:
    body = (
        Repeat("epoch", 2, (Repeat("minibatch", 2, (Run("a", 1),)),)),
        When(3, (Send("e", 0),)),
    )
    first = list(unroll(body, Position(3, 0)))
    assert [(at.epoch, at.minibatch) for i, at in first if isinstance(i, Run)] == [
        (0, 0), (0, 1), (1, 0), (1, 1)
    ]  # fmt: skip
    assert isinstance(first[-1][0], Send)
    assert not any(isinstance(i, Send) for i, _ in unroll(body, Position(4, 0)))
