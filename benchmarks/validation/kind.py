"""What each kind of measurement has to offer, so that all are fitted and reported alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from validation.fitting import Case, Prediction
from validation.rows import DATA, LeftOut, Row, read_rows


@dataclass(frozen=True)
class Kind:
    """A kind of measurement.

    Attributes:
        name: as in the JSON: `rl_steps`, `training`, `decode`, `memory`.
        unit: of what is measured and predicted.
        shipped: the product's constants, with their fitted fields.
        width: half that of its 80 % intervals, as a logarithm.
        file: name of the rows that the constants were fitted to, in `DATA`.
        cases: the rows that can be predicted, and those that are left out.
        predict: a case's prediction with constants, in the unit.
        pairs: of predictions, whether the faster of two comparable rows was called right; None
            for kinds without such rows.
    """

    name: str
    unit: str
    shipped: Any
    width: float
    file: str
    cases: Callable[[Sequence[Row]], tuple[list[Case], list[LeftOut]]]
    predict: Callable[[Case, Any], float]
    pairs: Callable[[Sequence[Prediction]], dict[str, Any]] | None = None

    def rows(self) -> list[Row]:
        """The rows that the constants were fitted to."""
        return read_rows(DATA / self.file)
