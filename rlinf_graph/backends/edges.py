"""The batches that lie on edges, by iteration and sample index."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.ir import packed
from rlinf_graph.ir.batch import Batch

Rows = NDArray[np.int64]


class Edges:
    """Holds what was put on each edge until every consumer is done with its iteration."""

    def __init__(self) -> None:
        """No edge holds anything."""
        self._parts: dict[tuple[str, int], list[tuple[Rows, Batch]]] = defaultdict(list)

    def put(self, edge: str, iteration: int, batch: Batch) -> Rows:
        """Keep a batch; the indices of its samples."""
        rows = np.asarray(batch.index, dtype=np.int64)
        self._parts[edge, iteration].append((rows, batch))
        return rows

    def has(self, edge: str, iteration: int, rows: Rows) -> bool:
        """Whether all samples with these indices have been put."""
        held = [index for index, _batch in self._parts.get((edge, iteration), [])]
        return bool(held) and bool(np.isin(rows, np.concatenate(held)).all())

    def take(self, edge: str, iteration: int, rows: Rows) -> Batch:
        """The samples with these indices, in this order; all of them have been put.

        Raises:
            KeyError: for a sample that has not been put.
        """
        found: list[Batch] = []
        for index, batch in self._parts[edge, iteration]:
            wanted = np.isin(index, rows)
            if wanted.all():
                found.append(batch)
            elif wanted.any():
                found.append(packed.select(batch, np.flatnonzero(wanted)))
        merged = packed.concat(found)
        place = {int(index): i for i, index in enumerate(merged.index)}
        order = np.fromiter((place[int(row)] for row in rows), np.int64, len(rows))
        straight = np.array_equal(order, np.arange(len(merged)))
        return merged if straight else packed.select(merged, order)

    def drop(self, edge: str, iteration: int) -> None:
        """Forget an iteration of an edge."""
        self._parts.pop((edge, iteration), None)
