"""Cut, join and order batches. Nothing is padded, lost or reordered unless asked for.

What `select` returns shares no memory of tensors with its source; values of `objects()` fields are
the same Python values. Functions that have nothing to do return the batch that they were given.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np

from rlinf_graph.ir.batch import Batch, TokenBatch
from rlinf_graph.ir.batches import Values

if TYPE_CHECKING:
    from torch import Tensor

SomeBatch = TypeVar("SomeBatch", bound=Batch)
Rows = np.ndarray[Any, np.dtype[np.int64]]


def select(batch: SomeBatch, rows: Sequence[int] | np.ndarray[Any, Any] | slice) -> SomeBatch:
    """The samples at positions `rows`, in that order; their tensors are copies.

    Raises:
        IndexError: for a position that the batch does not have.
    """
    if isinstance(rows, slice):
        start, stop, step = rows.indices(len(batch))
        if step == 1:
            return _run(batch, start, max(start, stop))
        rows = range(start, stop, step)
    chosen = np.arange(len(batch))[np.asarray(rows, dtype=np.int64)]
    if not len(chosen):
        return _run(batch, 0, 0)
    start, stop = int(chosen[0]), int(chosen[-1]) + 1
    if stop - start == len(chosen) and chosen.tobytes() == np.arange(start, stop).tobytes():
        return _whole(batch) if len(chosen) == len(batch) else _run(batch, start, stop)
    return _scattered(batch, chosen)


class Runs(Generic[SomeBatch]):
    """Neighbouring samples of one batch in another order, again and again.

    A field is brought into the order when a run of it is first read. The runs share its memory.
    """

    def __init__(self, batch: SomeBatch, order: Rows) -> None:
        """`order` holds int64 positions of samples, any of them."""
        self._batch, self._order = batch, np.array(order)  # torch wants it writable
        self._extras = columns(type(batch))["token"]
        self._lengths = _lengths(batch) if self._extras else np.zeros(0, dtype=np.int64)
        ordered = self._lengths[order] if self._extras else self._lengths
        self._before = np.concatenate(([0], np.cumsum(ordered)))
        self._columns: dict[str, Any] = {}

    def __call__(self, start: int, stop: int) -> SomeBatch:
        """The samples from `start` to before `stop` of the order."""
        return type(self._batch).late(functools.partial(self._run, start, stop))

    def _run(self, start: int, stop: int, name: str) -> Any:
        if name not in self._columns:
            self._columns[name] = self._ordered(name)
        extra = self._extras.get(name)
        if extra is not None:
            start, stop = (int(self._before[at]) + extra * at for at in (start, stop))
        return self._columns[name][start:stop]

    def _ordered(self, name: str) -> Any:
        if name in columns(type(self._batch))["object"]:
            column = getattr(self._batch, name)
            return [column[row] for row in self._order.tolist()]
        extra = self._extras.get(name)
        at = self._order if extra is None else positions(self._lengths, extra, self._order)
        return take(self._batch, [name], at)[name]


def concat(batches: Sequence[SomeBatch]) -> SomeBatch:
    """The samples of all `batches`, one after another, on the first one's device.

    Raises:
        ValueError: for no batch at all.
    """
    if not batches:
        raise ValueError("nothing to concatenate")
    if len(batches) == 1:
        return batches[0]
    axes = columns(type(batches[0]))
    fields: dict[str, Any] = {}
    for name in (*axes["sample"], *axes["token"]):
        fields[name] = _join([getattr(b, name) for b in batches])
    for name in axes["object"]:
        fields[name] = [value for b in batches for value in getattr(b, name)]
    return type(batches[0])(**fields)


def in_order(batch: SomeBatch) -> SomeBatch:
    """The samples ordered by their index."""
    index = host(batch.index)
    if bool(np.all(index[1:] >= index[:-1])):
        return batch
    return select(batch, np.argsort(index, kind="stable"))


def nbytes(batch: Batch) -> int:
    """Bytes of the tensors of `batch`."""
    axes = columns(type(batch))
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
        if not np.array_equal(host(first.index), host(other.index)):
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


@functools.cache
def columns(kind: type[Batch]) -> dict[str, dict[str, int]]:
    """`columns_by_axis` of a batch type, looked up once."""
    return kind.columns_by_axis()


def host(tensor: Any) -> np.ndarray[Any, Any]:
    """The values of a tensor of any device as a numpy array."""
    return tensor.numpy(force=True) if hasattr(tensor, "cpu") else np.asarray(tensor)


def take(batch: Batch, names: Iterable[str], rows: Rows) -> dict[str, Any]:
    """Copies of what stands at `rows` in the tensor fields with these names."""
    at = _torch().from_numpy(rows)
    found = {name: getattr(batch, name) for name in names}
    return {name: column.index_select(0, at.to(column.device)) for name, column in found.items()}


def positions(lengths: Rows, extra: int, rows: Rows, last: Any = True) -> Rows:
    """Where the values of `rows`, one row after another, stand in a packed field.

    Args:
        lengths: int64 `(n,)`, of all rows of the batch.
        extra: values that the field holds of each row beyond its length.
        rows: int64 `(k,)`, positions in `lengths`.
        last: bool `(k,)` or one bool: which of them bring their extra values.
    """
    if last is True and len(lengths) and (lengths == lengths[0]).all():
        size = int(lengths[0]) + extra
        return (rows[:, None] * size + np.arange(size)).reshape(-1)
    stored = lengths + extra
    starts = np.cumsum(stored) - stored
    return _ranges(starts[rows], lengths[rows] + extra * last)


@functools.cache
def packed_names(kind: type[Batch]) -> list[tuple[int, list[str]]]:
    """The packed fields of a batch type, by how many extra values they hold."""
    extras = columns(kind)["token"]
    return [(e, [n for n in extras if extras[n] == e]) for e in sorted(set(extras.values()))]


def _run(batch: SomeBatch, start: int, stop: int) -> SomeBatch:
    """Neighbouring samples."""
    axes = columns(type(batch))
    fields: dict[str, Any] = {n: getattr(batch, n)[start:stop].clone() for n in axes["sample"]}
    for name in axes["object"]:
        fields[name] = list(getattr(batch, name)[start:stop])
    if axes["token"]:
        lengths = _lengths(batch)
        before, inside = int(lengths[:start].sum()), int(lengths[start:stop].sum())
        for name, extra in axes["token"].items():
            at = before + extra * start
            end = at + inside + extra * (stop - start)
            fields[name] = getattr(batch, name)[at:end].clone()
    return type(batch)(**fields)


def _whole(batch: SomeBatch) -> SomeBatch:
    axes = columns(type(batch))
    names = (*axes["sample"], *axes["token"])
    fields: dict[str, Any] = {name: getattr(batch, name).clone() for name in names}
    for name in axes["object"]:
        fields[name] = list(getattr(batch, name))
    return type(batch)(**fields)


def _scattered(batch: SomeBatch, chosen: Rows) -> SomeBatch:
    axes = columns(type(batch))
    fields = take(batch, axes["sample"], chosen)
    for name in axes["object"]:
        column = getattr(batch, name)
        fields[name] = [column[i] for i in chosen.tolist()]
    if axes["token"]:
        lengths = _lengths(batch)
        for extra, names in packed_names(type(batch)):
            fields |= take(batch, names, positions(lengths, extra, chosen))
    return type(batch)(**fields)


def _lengths(batch: Batch) -> Rows:
    return host(cast("TokenBatch", batch).lengths)


def _ranges(starts: Rows, lengths: Rows) -> Rows:
    """`start, start + 1, ... start + length - 1` for each pair, joined."""
    ends = np.cumsum(lengths)
    found = np.repeat(starts - (ends - lengths), lengths)
    found += np.arange(len(found))
    return found


def _join(parts: Sequence[Tensor]) -> Tensor:
    """One after another, with the first one's type and device."""
    first = parts[0]
    kind, device = first.dtype, first.device
    alike = [p if p.dtype == kind and p.device == device else p.to(first) for p in parts]
    return _torch().cat(alike)


def _torch() -> Any:
    """What made the tensors at hand: this layer uses it, and does not load it."""
    return sys.modules["torch"]
