"""The batches that lie on edges, by moment and sample index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.ir import packed
from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.position import Moment, order_of, span

Rows = NDArray[np.int64]

EXTENTS = 4096
"""That are kept."""


@dataclass(frozen=True, eq=False)
class Extent:
    """Sample indices, with the smallest and the largest. `dense`: all between them, in order."""

    rows: Rows
    first: int
    last: int
    dense: bool

    @staticmethod
    def of(rows: Rows) -> Extent:
        """Of any indices, each there once. A `span` is looked at only once."""
        known = _extents.get(id(rows))
        if known is not None and known.rows is rows:
            return known
        made = _extent(rows)
        if rows.base is None and not rows.flags.writeable:
            if len(_extents) == EXTENTS:
                _extents.clear()
            _extents[id(rows)] = made
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """To other processes go two numbers where that is enough."""
        return (_dense, (self.first, self.last)) if self.dense else (Extent.of, (self.rows,))

    def meets(self, other: Extent) -> bool:
        """Whether they have one in common."""
        if self.last < other.first or other.last < self.first:
            return False
        return (self.dense and other.dense) or bool(np.isin(self.rows, other.rows).any())

    def within(self, others: Sequence[Extent]) -> bool:
        """Whether some others, of which no two have one in common, have all of them."""
        if self in others:
            return True
        if not self.dense or not all(other.dense for other in others):
            known = [other.rows for other in others]
            return bool(known) and bool(np.isin(self.rows, np.concatenate(known)).all())
        shared = (min(self.last, o.last) - max(self.first, o.first) + 1 for o in others)
        return sum(max(0, count) for count in shared) == len(self.rows)


_extents: dict[int, Extent] = {}


def _extent(rows: Rows) -> Extent:
    if not len(rows):
        return Extent(rows, 0, -1, True)
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and bool((rows[1:] > rows[:-1]).all()):
        return Extent(rows, first, last, True)
    return Extent(rows, int(rows.min()), int(rows.max()), False)


def _dense(first: int, last: int) -> Extent:
    return Extent.of(span(first, last + 1))


@dataclass(frozen=True)
class Part:
    """What one rank has put on an edge at once.

    Attributes:
        rows: the samples that are accounted for with it: its share.
        index: those that are there: all of `rows`, or fewer where a node has left some out.
        batch: of them.
        straight: whether they are all there, in order.
    """

    rows: Rows
    index: Rows
    batch: Batch
    straight: bool

    @staticmethod
    def of(rows: Rows, batch: Batch) -> Part:
        """A batch that accounts for `rows`.

        Raises:
            ValueError: see `require_share`.
        """
        index = index_of(batch)
        return Part(rows, index, batch, require_share(rows, index))

    @cached_property
    def extent(self) -> Extent:
        """Of the rank's share."""
        return Extent.of(self.rows)

    def is_just(self, rows: Rows) -> bool:
        """Whether these samples are there, in this order, and no others."""
        index = self.index
        if self.straight and self.rows is rows:
            return True
        if len(index) != len(rows) or not len(rows) or index[0] != rows[0]:
            return False
        return np.array_equal(index, rows)

    @cached_property
    def first(self) -> int | None:
        """The index of the first sample, where the others follow it one by one."""
        index = self.index
        if not len(index):
            return None
        first = int(index[0])
        straight = np.array_equal(index, np.arange(first, first + len(index)))
        return first if straight else None


def index_of(batch: Batch) -> Rows:
    """The indices of a batch's samples."""
    return packed.host(batch.index)


def require_share(rows: Rows, index: Rows) -> bool:
    """Whether a node made all samples of its share, in order; it makes none but of its share.

    Raises:
        ValueError: for an index that belongs to another rank or chunk, or to none.
    """
    if len(rows) == len(index) and bool((rows == index).all()):
        return True
    if not np.isin(index, rows).all():
        wrong = ", ".join(map(str, index[~np.isin(index, rows)][:3].tolist()))
        given = f"{rows.min()} to {rows.max()}" if len(rows) else "none"
        raise ValueError(
            f"its output has samples with index {wrong}, and it was given those of index {given}; "
            "keep the `index` of what a sample was made of"
        )
    return False


class Edges:
    """Holds what was put on each edge until every consumer is done with its moment."""

    def __init__(self) -> None:
        """No edge holds anything."""
        self._parts: dict[tuple[str, Moment], list[Part]] = defaultdict(list)
        self._exact: dict[tuple[str, Moment], dict[int, Part]] = defaultdict(dict)
        self._last: tuple[Batch | None, Rows | None, Batch | None] = (None, None, None)
        self._ordered: dict[tuple[str, Moment], tuple[Rows, packed.Runs[Batch]]] = {}

    def put(self, edge: str, moment: Moment, rows: Rows, batch: Batch) -> None:
        """Keep a batch that accounts for `rows`.

        Raises:
            ValueError: see `require_share`.
        """
        self.lay(edge, moment, Part.of(rows, batch))

    def lay(self, edge: str, moment: Moment, part: Part) -> None:
        """Keep a part."""
        self._parts[edge, moment].append(part)
        self._exact[edge, moment][id(part.rows)] = part  # which lives as long as the part

    def has(self, edge: str, moment: Moment, rows: Rows) -> bool:
        """Whether all samples with these indices are accounted for."""
        parts = self._parts.get((edge, moment), [])
        if parts and id(rows) in self._exact[edge, moment]:
            return True
        return bool(parts) and Extent.of(rows).within([part.extent for part in parts])

    def take(self, edge: str, moment: Moment, rows: Rows) -> Batch:
        """Those of the samples with these indices that are there, in this order.

        Raises:
            KeyError: where nothing has been put.
        """
        parts = self._parts.get((edge, moment), [])
        if not parts:
            raise KeyError(edge)
        exact = self._exact[edge, moment].get(id(rows))
        if exact is not None and exact.straight:
            return exact.batch
        if len(parts) > 1:
            whole = next((part for part in parts if part.is_just(rows)), None)
            return whole.batch if whole else _assembled(parts, rows)
        part = parts[0]
        if np.array_equal(part.index, rows):
            return part.batch
        if part.first is None:
            return _assembled(parts, rows)
        order, start = order_of(rows)
        if order is not rows and part.first == 0 and len(order) == len(part.index):
            return self._in_order((edge, moment), part, order)(start, start + len(rows))
        return self._cut(part, rows)

    def _in_order(self, place: tuple[str, Moment], part: Part, order: Rows) -> packed.Runs[Batch]:
        """All samples in the order of an epoch, of which its minibatches are runs."""
        known = self._ordered.get(place)
        if known is None or known[0] is not order:
            known = order, packed.Runs(part.batch, order)
            self._ordered[place] = known
        return known[1]

    def _cut(self, part: Part, rows: Rows) -> Batch:
        """Samples of a part in the order of their index.

        Edges that carry the same batch are often cut by the same rows, one after another.
        """
        batch, known, made = self._last
        if batch is part.batch and known is rows and made is not None:
            return made
        first, extent = part.first or 0, Extent.of(rows)
        if extent.dense and first <= extent.first <= extent.last < first + len(part.index):
            run = slice(extent.first - first, extent.last - first + 1)
            made = packed.select(part.batch, run)
        else:
            places = rows - first
            made = packed.select(part.batch, places[(places >= 0) & (places < len(part.index))])
        self._last = (part.batch, rows, made)
        return made

    def drop(self, edge: str, moment: Moment) -> None:
        """Forget a moment of an edge."""
        self._parts.pop((edge, moment), None)
        self._exact.pop((edge, moment), None)
        self._ordered.pop((edge, moment), None)


def _assembled(parts: list[Part], rows: Rows) -> Batch:
    """Cut each part, join the pieces, put them into the order of `rows`."""
    index = np.concatenate([part.index for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part.index) for part in parts])
    order = np.argsort(index, kind="stable")
    at = np.minimum(np.searchsorted(index[order], rows), max(0, len(index) - 1))
    found = order[at][index[order][at] == rows] if len(index) else order
    if not len(found):
        return packed.select(parts[0].batch, found)
    starts = np.cumsum([0, *(len(part.index) for part in parts)])
    used = np.unique(owner[found])
    pieces = [_chosen(parts[u].batch, found[owner[found] == u] - starts[u]) for u in used]
    joined = packed.concat(pieces)
    places = np.argsort(np.argsort(owner[found], kind="stable"))
    straight = np.array_equal(places, np.arange(len(places)))
    return joined if straight else packed.select(joined, places)


def _chosen(batch: Batch, positions: Rows) -> Batch:
    whole = np.array_equal(positions, np.arange(len(batch)))
    return batch if whole else packed.select(batch, positions)
