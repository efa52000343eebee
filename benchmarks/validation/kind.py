"""What each kind of measurement has to offer, so that all are fitted and reported alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from validation.fitting import Case, Prediction
from validation.rows import LeftOut, Row


@dataclass(frozen=True)
class Kind:
    """A kind of measurement.

    Attributes:
        name: as in the JSON: `rl_steps`, `training`, `decode`, `memory`.
        unit: of what is measured and predicted.
        shipped: the product's constants, with their fitted fields.
        cases: the rows that can be predicted, and those that are left out.
        predict: a case's prediction with constants, in the unit.
        pairs: of predictions, whether the faster of two comparable rows was called right; None
            for kinds without such rows.
    """

    name: str
    unit: str
    shipped: Any
    cases: Callable[[Sequence[Row]], tuple[list[Case], list[LeftOut]]]
    predict: Callable[[Case, Any], float]
    pairs: Callable[[Sequence[Prediction]], dict[str, Any]] | None = None
