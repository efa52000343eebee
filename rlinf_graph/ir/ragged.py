"""Batches whose samples differ in length: join them along steps, share them out, cut them.

Lengths are tokens or steps, int64 `(n,)`: a list, an array or a tensor of any device.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np

from rlinf_graph.ir.batch import Batch, TokenBatch
from rlinf_graph.ir.packed import (
    Rows,
    columns,
    concat,
    host,
    packed_names,
    positions,
    select,
    take,
)

if TYPE_CHECKING:
    from torch import Tensor

SomeBatch = TypeVar("SomeBatch", bound=Batch)
Lengths: TypeAlias = "Sequence[int] | np.ndarray[Any, Any] | Tensor"


def join(parts: Sequence[SomeBatch]) -> SomeBatch:
    """The batches of a loop's steps as one: a row for each index, ordered by index.

    Rows of equal index are one sample at successive steps. Of a `TokenBatch` they are joined:
    packed fields are concatenated, and keep their extra values at the sample's last step only, so
    that states `[s0, s1]` and `[s1, s2]` become `[s0, s1, s2]`; lengths are added; lists in
    `objects()` fields are concatenated; all else is as at the last step. Of other batches the row
    of the last step stays.

    Args:
        parts: in the order of the steps; the samples of a step may be spread over several.

    Returns:
        A single part itself where there is nothing to do.

    Raises:
        ValueError: for no part at all.
    """
    if not parts:
        raise ValueError("nothing to join")
    whole = concat(parts)
    index = host(whole.index)
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    last = np.ones(len(order), dtype=np.bool_)
    last[:-1] = ordered[1:] != ordered[:-1]
    if issubclass(type(whole), TokenBatch) and not last.all():
        return _along_steps(cast("Any", whole), order, last)
    straight = last.all() and np.array_equal(order, np.arange(len(order)))
    return whole if straight else select(whole, order[last])


def _along_steps(whole: TokenBatch, order: Rows, last: np.ndarray[Any, Any]) -> Any:
    """Join rows that follow one another in `order`, each time up to one that is `last`."""
    axes = columns(type(whole))
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate(([0], ends[:-1]))
    lengths = host(whole.lengths)
    fields = take(whole, axes["sample"], order[last])
    fields["lengths"] = whole.lengths.new_tensor(np.add.reduceat(lengths[order], starts))
    for extra, names in packed_names(type(whole)):
        fields |= take(whole, names, positions(lengths, extra, order, last))
    cuts = list(zip(starts.tolist(), ends.tolist(), strict=True))
    for name in axes["object"]:
        column = getattr(whole, name)
        values = [column[row] for row in order.tolist()]
        fields[name] = [_of_steps(values[a:b]) for a, b in cuts]
    return type(whole)(**fields)


def _of_steps(values: list[Any]) -> Any:
    if all(isinstance(value, list) for value in values):
        return list(itertools.chain.from_iterable(cast("list[list[Any]]", values)))
    return values[-1]


def balanced(lengths: Lengths, parts: int) -> list[Rows]:
    """The rows that each of `parts` data-parallel ranks takes, with about as many tokens each.

    The longest row goes first, always to the part with the fewest tokens (Graham's LPT rule, 1969);
    ties go to the part with fewer rows, then to the first. No part exceeds the mean by more than
    the longest row, and none stays empty while there are rows for all.

    Returns:
        For each part its positions, ascending.

    Raises:
        ValueError: for less than one part.
    """
    if parts < 1:
        raise ValueError(f"rows cannot be shared among {parts} parts")
    tokens = _tokens(lengths)
    weights = cast("list[int]", tokens.tolist())
    loads = [(0, 0, part) for part in range(parts)]
    rows: list[list[int]] = [[] for _ in range(parts)]
    for row in _longest_first(tokens):
        load, count, part = loads[0]
        rows[part].append(row)
        heapq.heapreplace(loads, (load + weights[row], count + 1, part))
    return [np.sort(np.array(found, dtype=np.int64)) for found in rows]


def within_tokens(lengths: Lengths, budget: int) -> list[slice]:
    """Consecutive micro-batches of at most `budget` tokens; a longer row stands alone.

    No other cut that keeps the order has fewer micro-batches.

    Raises:
        ValueError: for a budget below one token.
    """
    ends = np.cumsum(_tokens(lengths, budget))
    cuts: list[slice] = []
    start, before = 0, 0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, before + budget, side="right")), start + 1)
        cuts.append(slice(start, stop))
        start, before = stop, int(ends[stop - 1])
    return cuts


def binned(lengths: Lengths, budget: int) -> list[Rows]:
    """Few micro-batches of at most `budget` tokens, in any order; a longer row stands alone.

    The longest row goes first, always where it leaves the least room (best fit decreasing, which
    needs at most 11/9 of the fewest possible, and 4 more: Johnson 1973). Rows of like length come
    together, which also saves engines that pad most of their padding.

    Returns:
        For each micro-batch its positions, ascending; the one with the first row comes first.

    Raises:
        ValueError: for a budget below one token.
    """
    tokens = _tokens(lengths, budget)
    weights = cast("list[int]", tokens.tolist())
    room: list[tuple[int, int]] = []
    rows: list[list[int]] = []
    for row in _longest_first(tokens):
        place = bisect.bisect_left(room, (weights[row], 0))
        left, found = room.pop(place) if place < len(room) else (budget, len(rows))
        if found == len(rows):
            rows.append([])
        rows[found].append(row)
        bisect.insort(room, (left - weights[row], found))
    return sorted((np.sort(np.array(r, dtype=np.int64)) for r in rows), key=lambda r: int(r[0]))


def _tokens(lengths: Lengths, budget: int = 1) -> Rows:
    if budget < 1:
        raise ValueError(f"a micro-batch of at most {budget} tokens holds none")
    return np.asarray(host(lengths), dtype=np.int64)


def _longest_first(tokens: Rows) -> list[int]:
    return np.argsort(-tokens, kind="stable").tolist()
