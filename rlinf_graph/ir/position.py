"""Where an interpreter stands in a program, and which samples belong to a position."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Axis = Literal["chunk", "epoch", "minibatch", "micro_batch", "step"]
Moment = tuple[int, ...]
"""An iteration, and in loops the step of each, outermost first: when an edge carried a batch."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where an interpreter stands in a worker group's list.

    `steps` are the places in the loops of the regions around, outermost first.
    """

    iteration: int
    rank: int
    chunk: int = 0
    epoch: int = 0
    minibatch: int = 0
    micro_batch: int = 0
    steps: tuple[int, ...] = ()

    def moment(self, depth: int = 0, lag: int = 0) -> Moment:
        """The moment, `depth` loops deep, `lag` steps ago (at depth 0: iterations)."""
        if not depth:
            return (self.iteration - lag,)
        return (self.iteration, *self.steps[: depth - 1], self.steps[depth - 1] - lag)


class Part(StrEnum):
    """Which samples of an edge an instruction wants."""

    ALL = "all"
    CHUNK = "chunk"
    MINIBATCH = "minibatch"


@dataclass(frozen=True)
class Select:
    """The samples of a position: a chunk's shard, or a micro-batch's shard of a minibatch.

    Attributes:
        part: how the iteration's samples are cut first.
        count: chunks or minibatches of an iteration.
        micro_batches: micro-batches of a minibatch.
        permute: whether epochs after the first take the samples in another order.
        balanced: whether all ranks take the whole micro-batch, to cut it by length themselves.
    """

    part: Part
    count: int = 1
    micro_batches: int = 1
    permute: bool = False
    balanced: bool = False

    def rows(self, at: Position, total: int, ranks: int, seed: int = 0) -> NDArray[np.int64]:
        """Sample indices, in dispatch order, that the rank at a position works on.

        Args:
            at: the position.
            total: samples of an iteration on the edge.
            ranks: over how many ranks the samples are spread.
            seed: of the run; keys the permutation of later epochs.
        """
        if self.part is Part.ALL:
            return span(0, total)
        index = at.chunk if self.part is Part.CHUNK else at.minibatch
        start, stop = cut(0, total, index, self.count)
        if self.part is Part.MINIBATCH:
            start, stop = cut(start, stop, at.micro_batch, self.micro_batches)
        start, stop = (start, stop) if self.balanced else cut(start, stop, at.rank, ranks)
        if self.permute and at.epoch > 0:
            return _permuted(seed, at.iteration, at.epoch, total, start, stop)
        return span(start, stop)


def order_of(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """The order that rows are a part of, and where in it they begin; they themselves, if of none.

    What an epoch takes in one order can be brought into it once.
    """
    order = rows.base
    if not isinstance(order, np.ndarray) or order.dtype != rows.dtype or not rows.flags.contiguous:
        return rows, 0
    return order, (rows.ctypes.data - order.ctypes.data) // rows.itemsize


@lru_cache(maxsize=256)
def _permuted(
    seed: int, iteration: int, epoch: int, total: int, start: int, stop: int
) -> NDArray[np.int64]:
    """The same array every time, so that what was cut by it can be found again."""
    return _permutation(seed, iteration, epoch, total)[start:stop]


@lru_cache(maxsize=4096)
def span(start: int, stop: int) -> NDArray[np.int64]:
    """`start .. stop - 1`: the same array every time, which must not be written."""
    rows = np.arange(start, stop)
    rows.flags.writeable = False
    return rows


@lru_cache(maxsize=64)
def _permutation(seed: int, iteration: int, epoch: int, total: int) -> NDArray[np.int64]:
    key = np.random.Philox(key=seed, counter=[iteration, epoch, 0, 0])
    order = np.random.Generator(key).permutation(total)
    order.flags.writeable = False
    return order


def cut(start: int, stop: int, index: int, parts: int) -> tuple[int, int]:
    """Part `index` of a range cut into `parts` as equal as they can be."""
    size = stop - start
    return start + size * index // parts, start + size * (index + 1) // parts
