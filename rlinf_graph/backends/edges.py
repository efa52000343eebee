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
        self._parts: dict[tuple[str, int], list[Batch]] = defaultdict(list)
        self._places: dict[tuple[str, int], dict[int, tuple[int, int]]] = defaultdict(dict)

    def put(self, edge: str, iteration: int, batch: Batch) -> Rows:
        """Keep a batch; the indices of its samples."""
        rows = np.asarray(batch.index.cpu(), dtype=np.int64)
        parts = self._parts[edge, iteration]
        places = {row: (len(parts), position) for position, row in enumerate(rows.tolist())}
        self._places[edge, iteration] |= places
        parts.append(batch)
        return rows

    def has(self, edge: str, iteration: int, rows: Rows) -> bool:
        """Whether all samples with these indices have been put."""
        places = self._places.get((edge, iteration))
        return places is not None and all(row in places for row in rows.tolist())

    def take(self, edge: str, iteration: int, rows: Rows) -> Batch:
        """The samples with these indices, in this order; all of them have been put.

        Raises:
            KeyError: for a sample that has not been put.
        """
        parts, places = self._parts[edge, iteration], self._places[edge, iteration]
        found = np.array([places[row] for row in rows.tolist()]).reshape(-1, 2)
        used = np.unique(found[:, 0])
        if not len(used):
            return packed.select(parts[0], rows)
        chosen = [_chosen(parts[part], found[found[:, 0] == part, 1]) for part in used]
        joined = packed.concat(chosen)
        order = np.argsort(np.argsort(found[:, 0], kind="stable"))
        straight = np.array_equal(order, np.arange(len(order)))
        return joined if straight else packed.select(joined, order)

    def drop(self, edge: str, iteration: int) -> None:
        """Forget an iteration of an edge."""
        self._parts.pop((edge, iteration), None)
        self._places.pop((edge, iteration), None)


def _chosen(batch: Batch, positions: NDArray[np.int64]) -> Batch:
    whole = np.array_equal(positions, np.arange(len(batch)))
    return batch if whole else packed.select(batch, positions)
