"""Constants that were fitted to measurements: their values, and what values would make sense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

Constants = TypeVar("Constants")
FITTED = "fitted"


@dataclass(frozen=True)
class Parameter:
    """A fitted constant.

    Attributes:
        name: of the field.
        value: as shipped.
        low, high: what is physically possible.
        meaning: with its unit.
    """

    name: str
    value: float
    low: float
    high: float
    meaning: str

    def unit(self, value: float) -> float:
        """Where a value lies in the range: 0 at its low end, 1 at its high end.

        The scale is logarithmic, and linear for a range that begins at 0.
        """
        if self.low > 0:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self, unit: float) -> float:
        """The value there."""
        if self.low > 0:
            return self.low * (self.high / self.low) ** unit
        return self.low + unit * (self.high - self.low)


def fitted(value: float, low: float, high: float, meaning: str) -> Any:
    """A field of a dataclass of constants that `benchmarks/cost_model.py` fits."""
    return field(default=value, metadata={FITTED: (low, high, meaning)})


def parameters(constants: Any) -> tuple[Parameter, ...]:
    """The fitted fields of a dataclass of constants, in their order."""
    return tuple(
        Parameter(made.name, getattr(constants, made.name), *made.metadata[FITTED])
        for made in fields(constants)
        if FITTED in made.metadata
    )


def with_values(constants: Constants, values: Sequence[float]) -> Constants:
    """The same constants with other values of the fitted fields, in the order of `parameters`."""
    names = [parameter.name for parameter in parameters(constants)]
    changed = {name: float(value) for name, value in zip(names, values, strict=True)}
    known: Any = constants
    return replace(known, **changed)
