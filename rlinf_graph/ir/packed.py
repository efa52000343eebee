"""Cut, join and order batches. Nothing is padded, lost or reordered unless asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np

from rlinf_graph.ir.batch import Batch, TokenBatch
from rlinf_graph.ir.batches import Values

SomeBatch = TypeVar("SomeBatch", bound=Batch)


def select(batch: SomeBatch, rows: Sequence[int] | np.ndarray[Any, Any]) -> SomeBatch:
    """The samples at positions `rows`, in that order.

    Raises:
        IndexError: for a position that the batch does not have.
    """
    chosen = np.asarray(rows, dtype=np.int64)
    axes = batch.columns_by_axis()
    fields: dict[str, Any] = {n: getattr(batch, n)[chosen] for n in axes["sample"]}
    for name in axes["object"]:
        column = getattr(batch, name)
        fields[name] = [column[i] for i in chosen]
    for name, extra in axes["token"].items():
        lengths = _lengths(batch) + extra
        starts = np.cumsum(lengths) - lengths
        fields[name] = getattr(batch, name)[_ranges(starts[chosen], lengths[chosen])]
    return type(batch)(**fields)


def concat(batches: Sequence[SomeBatch]) -> SomeBatch:
    """The samples of all `batches`, one after another.

    Raises:
        ValueError: for no batch at all.
    """
    if not batches:
        raise ValueError("nothing to concatenate")
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    axes = first.columns_by_axis()
    fields: dict[str, Any] = {}
    for name in (*axes["sample"], *axes["token"]):
        fields[name] = _join([getattr(b, name) for b in batches])
    for name in axes["object"]:
        fields[name] = [value for b in batches for value in getattr(b, name)]
    return type(first)(**fields)


def in_order(batch: SomeBatch) -> SomeBatch:
    """The samples ordered by their index."""
    index = _host(batch.index)
    if bool(np.all(index[1:] >= index[:-1])):
        return batch
    return select(batch, np.argsort(index, kind="stable"))


def nbytes(batch: Batch) -> int:
    """Bytes of the tensors of `batch`."""
    axes = batch.columns_by_axis()
    names = (*axes["sample"], *axes["token"])
    return sum(int(getattr(batch, name).nbytes) for name in names)


def to(batch: SomeBatch, device: Any) -> SomeBatch:
    """The batch with its tensors on `device`."""
    moved = {
        f.name: getattr(batch, f.name).to(device)
        for f in dataclasses.fields(cast("Any", batch))
        if f.metadata["axis"] != "object"
    }
    return batch.replace(**moved)


def drop_last(values: Values) -> Any:
    """State values, packed over the tokens: without the one after each sample's last token."""
    lengths = _lengths(values)
    starts = np.cumsum(lengths + 1) - (lengths + 1)
    return values.values[_ranges(starts, lengths)]


def same_samples(*batches: Batch) -> None:
    """Make sure that batches which are read together hold the same samples in the same order.

    Raises:
        ValueError: where they do not.
    """
    first = batches[0]
    for other in batches[1:]:
        if not np.array_equal(_host(first.index), _host(other.index)):
            one, two = type(first).__name__, type(other).__name__
            raise ValueError(f"{one} and {two} do not hold the same samples in the same order")


def last_positions(mask: Any, lengths: Any) -> tuple[Any, Any]:
    """Where each sample's last marked token stands in a packed field.

    Args:
        mask: bool, packed.
        lengths: int64 `(n,)`.

    Returns:
        int64 positions of the last marked tokens, and bool `(n,)`: the samples that have one; the
        positions are of those samples only.
    """
    owner = (lengths.new_ones(len(lengths)).cumsum(0) - 1).repeat_interleave(lengths)[mask]
    counts = owner.bincount(minlength=len(lengths))
    marked = mask.nonzero().flatten()
    return marked[counts.cumsum(0)[counts > 0] - 1], counts > 0


def _lengths(batch: Batch) -> np.ndarray[Any, Any]:
    return _host(cast("TokenBatch", batch).lengths)


def _host(tensor: Any) -> np.ndarray[Any, Any]:
    """The values of a tensor of any device as a numpy array."""
    return np.asarray(tensor.cpu() if hasattr(tensor, "cpu") else tensor)


def _ranges(starts: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> Any:
    """`start, start + 1, ... start + length - 1` for each pair, joined."""
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def _join(parts: Sequence[Any]) -> Any:
    total = sum(len(p) for p in parts)
    joined = parts[0].new_empty((total, *parts[0].shape[1:]))
    at = 0
    for part in parts:
        joined[at : at + len(part)] = part
        at += len(part)
    return joined
