"""Metrics that any node or loss may emit, with their reduction declared where they are emitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Reduction = Literal["mean", "sum", "max", "min"]


@dataclass
class Metrics:
    """What has been emitted since the last `clear`: by name, how to reduce, total and weight."""

    kept: dict[str, tuple[Reduction, float, float]] = field(default_factory=dict[str, Any])

    def add(self, name: str, reduction: Reduction, total: float, weight: float) -> None:
        """Merge one emission: samples, micro-batches and ranks all merge the same way.

        Raises:
            ValueError: when a name is emitted with two reductions.
        """
        known, old, old_weight = self.kept.get(name, (reduction, _EMPTY[reduction], 0.0))
        if known != reduction:
            raise ValueError(f"metric `{name}` is reduced by {known} and by {reduction}")
        merged = _MERGE[reduction](old, total)
        self.kept[name] = (reduction, merged, old_weight + weight)

    def merge(self, other: Metrics) -> None:
        """Take in what another rank emitted."""
        for name, (reduction, total, weight) in other.kept.items():
            self.add(name, reduction, total, weight)

    def renamed(self, name: Callable[[str], str]) -> Metrics:
        """The same under other names."""
        return Metrics({name(old): kept for old, kept in self.kept.items()})

    def values(self) -> dict[str, float]:
        """Name → reduced value, sorted by name."""
        return dict(sorted(self._values()))

    def _values(self) -> Iterator[tuple[str, float]]:
        for name, (reduction, total, weight) in self.kept.items():
            yield name, (total / weight if weight else math.nan) if reduction == "mean" else total


_EMPTY: dict[Reduction, float] = {"mean": 0.0, "sum": 0.0, "max": -math.inf, "min": math.inf}
_MERGE: dict[Reduction, Any] = {
    "mean": lambda a, b: a + b,
    "sum": lambda a, b: a + b,
    "max": max,
    "min": min,
}
