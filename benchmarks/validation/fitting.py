"""Fits of a kind's constants, on all rows and with each model left out in turn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from rlinf_graph.compiler.cost.fitted import parameters, with_values
from rlinf_graph.compiler.cost.uncertainty import NORMAL_80, interval
from validation.rows import Row

Array = NDArray[np.float64]
SOFT = 0.15
"""Logarithmic error from which on a row pulls a fit by its size, no longer by its square."""

FEWEST = 5
"""Rows from which on their order is judged, and the width of others' intervals."""


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


def leave_one_model_out(
    predict: Predict, cases: Sequence[Case], start: Any, known: Sequence[Case]
) -> list[Prediction]:
    """Each model predicted with constants that its rows had no part in, in the order of cases.

    Args:
        predict: of the kind.
        cases: to be predicted.
        start: the shipped constants.
        known: the cases that those were fitted to. A model that is not among them needs no new
            fit; for others the constants are fitted to the other models of `known` and `cases`.
    """
    given = [dict(case.row.fields) for case in cases]
    fitted_to = [*cases, *(case for case in known if dict(case.row.fields) not in given)]
    seen = {case.model for case in known}
    said: dict[int, Prediction] = {}
    for model in sorted({case.model for case in cases}):
        others = [case for case in fitted_to if case.model != model]
        constants = fit(predict, others, start) if others and model in seen else start
        for index, case in enumerate(cases):
            if case.model == model:
                said[index] = Prediction(case, predict(case, constants))
    return [said[index] for index in range(len(cases))]


def with_intervals(predictions: Sequence[Prediction], shipped: float) -> list[Prediction]:
    """80 % intervals from how far off the predictions of all *other* models were.

    Args:
        predictions: of a kind.
        shipped: half the width, as a logarithm, where there are fewer than `FEWEST` of those.
    """
    widths: dict[str, float] = {}
    for model in {one.case.model for one in predictions}:
        others = [p for p in predictions if p.case.model != model]
        widths[model] = half_width(others) if len(others) >= FEWEST else shipped
    return [
        replace(one, interval=interval(one.predicted, widths[one.case.model]))
        for one in predictions
    ]


def half_width(predictions: Sequence[Prediction]) -> float:
    """Half the width of an 80 % interval, as a logarithm, from one prediction at least.

    That of a normal distribution whose mean absolute error is the mean of the models', each by the
    square root of its rows: errors of one model have much in common, but not everything.
    """
    by_model: dict[str, list[float]] = defaultdict(list)
    for one in predictions:
        by_model[one.case.model].append(abs(one.off))
    means = [np.mean(errors) for errors in by_model.values()]
    weights = [len(errors) ** 0.5 for errors in by_model.values()]
    return NORMAL_80 * math.sqrt(math.pi / 2) * float(np.average(means, weights=weights))
