"""Fits of a kind's constants, on all rows and with each model left out in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from rlinf_graph.compiler.cost.fitted import parameters, with_values
from validation.rows import Row

Array = NDArray[np.float64]
SOFT = 0.15
"""Logarithmic error from which on a row pulls a fit by its size, no longer by its square."""


@dataclass(frozen=True)
class Case:
    """A row, ready to be predicted.

    Attributes:
        row: where it comes from.
        model: canonical name.
        what: device type, layout and sizes in a few words.
        measured: what was published, in the kind's unit.
        payload: whatever the kind predicts from.
        provenance: of the prediction: `roofline`, or `measured kernel`.
        assumed: what the row lacks and where it was taken from.
        weight: of the row in a fit.
    """

    row: Row
    model: str
    what: str
    measured: float
    payload: Any
    provenance: str = "roofline"
    assumed: tuple[str, ...] = ()
    weight: float = 1.0


Predict = Callable[[Case, Any], float]


@dataclass(frozen=True)
class Prediction:
    """A case with what is said of it.

    Attributes:
        case: what was predicted.
        predicted: in the kind's unit.
        interval: its 80 % interval; empty bounds before it is known.
    """

    case: Case
    predicted: float
    interval: tuple[float, float] = field(default=(0.0, float("inf")))

    @property
    def off(self) -> float:
        """Logarithm of predicted by measured."""
        return float(np.log(self.predicted / self.case.measured))

    @property
    def error(self) -> float:
        """Relative error, with its sign."""
        return self.predicted / self.case.measured - 1


def predict_all(predict: Predict, cases: Sequence[Case], constants: Any) -> list[Prediction]:
    """Predictions with given constants."""
    return [Prediction(case, predict(case, constants)) for case in cases]


def fit(predict: Predict, cases: Sequence[Case], start: Any) -> Any:
    """The constants that leave the least robust logarithmic error.

    The fitted fields move within their physical ranges, on a logarithmic scale where a range does
    not begin at 0. The middle of each range is expected before any row is seen: a value at an end
    of it costs as much as a row that is `SOFT` off. Constants without fitted fields stay.
    """
    known = parameters(start)
    if not known:
        return start
    weights = np.sqrt([case.weight for case in cases])

    def residuals(units: Array) -> Array:
        constants = _at(start, units)
        off = np.asarray([np.log(predict(c, constants) / c.measured) for c in cases])
        return np.concatenate([weights * off, 2 * SOFT * (units - 0.5)])

    first = np.clip([p.unit(p.value) for p in known], 0.01, 0.99)
    found = least_squares(
        residuals, first, bounds=(0, 1), loss="soft_l1", f_scale=SOFT, diff_step=1e-3, max_nfev=40
    )
    return _at(start, found.x)


def _at(start: Any, units: Array) -> Any:
    """Constants at places within their ranges."""
    known = zip(parameters(start), units.tolist(), strict=True)
    return with_values(start, [parameter.at(unit) for parameter, unit in known])


def leave_one_model_out(predict: Predict, cases: Sequence[Case], start: Any) -> list[Prediction]:
    """Each model predicted with constants that its rows had no part in, in the order of cases."""
    said: dict[int, Prediction] = {}
    for model in sorted({case.model for case in cases}):
        others = [case for case in cases if case.model != model]
        constants = fit(predict, others, start) if others else start
        for index, case in enumerate(cases):
            if case.model == model:
                said[index] = Prediction(case, predict(case, constants))
    return with_intervals([said[index] for index in range(len(cases))])


def with_intervals(predictions: Sequence[Prediction], coverage: float = 0.8) -> list[Prediction]:
    """Intervals from how far off the predictions of all *other* models were.

    Each model counts the same, however many rows it has.
    """
    rows = Counter(one.case.model for one in predictions)
    made: list[Prediction] = []
    for one in predictions:
        others = [p for p in predictions if p.case.model != one.case.model]
        width = quantile(
            [abs(p.off) for p in others], [1 / rows[p.case.model] for p in others], coverage
        )
        ends = one.predicted * np.exp(-width), one.predicted * np.exp(width)
        made.append(replace(one, interval=(float(ends[0]), float(ends[1]))))
    return made


def quantile(values: Sequence[float], weights: Sequence[float], share: float) -> float:
    """The least value up to which the given share of all weight lies; infinity of none."""
    if not values:
        return float("inf")
    order = np.argsort(values)
    total = np.cumsum(np.asarray(weights)[order])
    at = int(np.searchsorted(total, share * total[-1] * (1 - 1e-12)))
    return float(np.asarray(values)[order][at])
