"""What lies on an edge is taken in any order, at once or epoch by epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlinf_graph.backends.edges import Edges
from rlinf_graph.ir.batches import Rewards
from rlinf_graph.ir.position import Part, Position, Select, order_of, span


def rewards(first: int, stop: int) -> Rewards:
    index = torch.arange(first, stop)
    return Rewards(index=index, group=index, values=index.double() * 10)


@pytest.mark.parametrize("parts", [1, 2])
def test_every_epoch_takes_every_sample_once_in_its_own_order(parts: int) -> None:
    total, edges = 12, Edges()
    for part in range(parts):
        first, stop = total * part // parts, total * (part + 1) // parts
        edges.put("edge", (0,), span(first, stop), rewards(first, stop))
    select = Select(Part.MINIBATCH, count=3, micro_batches=2, permute=True)
    orders: list[list[int]] = []
    for epoch in range(3):
        seen: list[int] = []
        for minibatch in range(3):
            for micro_batch in range(2):
                at = Position(0, 0, 0, epoch, minibatch, micro_batch)
                rows = select.rows(at, total, 1, seed=3)
                taken = edges.take("edge", (0,), rows)
                assert isinstance(taken, Rewards)
                assert taken.index.tolist() == rows.tolist()
                assert taken.values.tolist() == [10.0 * row for row in rows]
                seen += rows.tolist()
        assert sorted(seen) == list(range(total))
        orders.append(seen)
    assert orders[0] == list(range(total))
    assert orders[1] != orders[2]


def test_rows_know_the_order_that_they_are_a_part_of() -> None:
    order = np.asarray([3, 1, 2, 0])
    found, start = order_of(order[1:3])
    assert found is order
    assert start == 1
    alone = np.asarray([2, 1])
    assert order_of(alone) == (alone, 0)
    assert order_of(order[::2])[1] == 0
