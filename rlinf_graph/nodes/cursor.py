"""The state of a data source: which rows come next."""

from __future__ import annotations

import zlib
from collections.abc import MutableMapping
from typing import Any

import numpy as np


def order(seed: int, source: str, epoch: int, count: int) -> np.ndarray[Any, Any]:
    """A permutation of `count` rows that depends on its arguments only (Philox, counter-based)."""
    key = np.array([seed % 2**64, zlib.crc32(source.encode())], dtype=np.uint64)
    counter = np.array([0, epoch, 0, 0], dtype=np.uint64)
    draws = np.random.Philox(key=key, counter=counter).random_raw(count)
    return np.argsort(draws, kind="stable")


def advance(
    registers: MutableMapping[str, Any],
    source: str,
    *,
    count: int,
    batch: int | None,
    shuffle: bool,
    seed: int,
) -> list[int]:
    """The next rows of a source, whose register moves on.

    Args:
        registers: by source: `epoch`, `cursor` (rows of it already given) and `seed`.
        source: the node's name.
        count: rows of the data set, at least 1.
        batch: rows to give; None: all of them, in file order.
        shuffle: give each epoch in an order of its own.
        seed: of the run; a register that exists keeps its own.

    A batch that reaches the end of an epoch goes on with the next: no row is left out.
    """
    state = registers.get(source) or {"epoch": 0, "cursor": 0, "seed": seed}
    epoch, cursor, kept = int(state["epoch"]), int(state["cursor"]), int(state["seed"])
    shuffled = shuffle and batch is not None
    taken: list[int] = []
    wanted = count if batch is None else batch
    while len(taken) < wanted:
        rows = order(kept, source, epoch, count) if shuffled else np.arange(count)
        more = rows[cursor : cursor + wanted - len(taken)]
        taken += [int(i) for i in more]
        cursor += len(more)
        if cursor >= count:
            epoch, cursor = epoch + 1, 0
    registers[source] = {"epoch": epoch, "cursor": cursor, "seed": kept}
    return taken
