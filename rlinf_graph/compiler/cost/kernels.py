"""Measured kernels: what a source of them offers, and how it takes the roofline's place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.served import Formats

Array = npt.NDArray[np.float64]

MEASURED = "measured kernel"
"""Where a cost comes from that rests on such figures."""


class Table(Protocol):
    """Measured seconds of one model on one layout, messages included."""

    def decode(self, batch: int, context: int) -> float:
        """Of a step in which `batch` sequences of each replica look back at `context` tokens."""
        ...

    def prefill(self, prompts: int, tokens: int) -> float:
        """Of a call that reads `prompts` prompts of `tokens` tokens."""
        ...


@dataclass(frozen=True)
class Missing:
    """Why a source has no table."""

    reason: str


class Kernels(Protocol):
    """A source of measured kernels."""

    def table(self, layout: Layout, formats: Formats) -> Surface | Missing:
        """What it has for a layout; remembered."""
        ...


BATCHES = 2.0 ** np.arange(14)
CONTEXTS = 2.0 ** np.arange(5, 18)


class Surface:
    """A table between its points: linear in the logarithms of batch, context and seconds.

    Between powers of two a step's seconds are straight there to a few percent. Beyond the last
    point the figure of the last point is scaled with what lies beyond.
    """

    def __init__(self, table: Table) -> None:
        """Of a table, which is asked for every point once, when the first is needed."""
        self._table = table
        self._prefills: dict[tuple[int, int], float] = {}

    def prepare(self) -> None:
        """Ask for every point and for a usual prompt now, so that what is missing shows."""
        _ = self._seconds
        self.prefill(8192, 1024)

    @cached_property
    def _seconds(self) -> Array:
        """Logarithms, by batch and context."""
        return np.log(
            [[self._table.decode(int(b), int(c)) for c in CONTEXTS.tolist()] for b in BATCHES]
        )

    def decode(self, batch: Array, context: Array) -> Array:
        """Seconds of steps; none for an empty batch."""
        row, right = _between(batch, len(BATCHES), first=0)
        column, below = _between(context, len(CONTEXTS), first=5)
        at = self._seconds
        near = at[row, column] * (1 - below) + at[row, column + 1] * below
        far = at[row + 1, column] * (1 - below) + at[row + 1, column + 1] * below
        seconds = np.exp(near * (1 - right) + far * right)
        return np.where(batch > 0, seconds * np.minimum(1.0, np.maximum(batch, 0.0)), 0.0)

    def prefill(self, tokens: float, prompt: float) -> float:
        """Seconds to read so many tokens of prompts in one call: of whole prompts, batched."""
        if tokens <= 0 or prompt <= 0:
            return 0.0
        length = max(1, round(prompt))
        key = (max(1, round(tokens / length)), length)
        if key not in self._prefills:
            self._prefills[key] = self._table.prefill(*key)
        return self._prefills[key] * tokens / (key[0] * length)


def _between(values: Array, count: int, first: int) -> tuple[npt.NDArray[np.int64], Array]:
    """The index of the power of two below each value, and how far it is to the next."""
    power = np.log2(np.maximum(values, 2.0**first)) - first
    index = np.clip(power.astype(np.int64), 0, count - 2)
    return index, np.asarray(power - index, dtype=np.float64)
