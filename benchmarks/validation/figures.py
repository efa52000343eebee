"""How far off a kind's predictions are: errors, order, coverage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from validation.fitting import FEWEST, Prediction, half_width

APART = 0.15
"""Measured values that differ by less are of one size: published tables move by that much."""


def error_at(predictions: Sequence[Prediction], share: float) -> float | None:
    """A quantile of the absolute relative errors; None without predictions."""
    errors = [abs(p.error) for p in predictions]
    return float(np.quantile(errors, share)) if errors else None


def coverage(predictions: Sequence[Prediction]) -> float | None:
    """Share of the measured values that lie within their intervals; None without any."""
    inside = [p.interval[0] <= p.case.measured <= p.interval[1] for p in predictions]
    return float(np.mean(inside)) if inside else None


def tau(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Kendall's tau over the pairs of each model's rows that differ by more than 15 %."""
    by_model: dict[str, list[Prediction]] = defaultdict(list)
    for one in predictions:
        by_model[one.case.model].append(one)
    found: dict[str, float] = {}
    for model, rows in sorted(by_model.items()):
        signs = [
            np.sign(a.predicted - b.predicted) * np.sign(a.case.measured - b.case.measured)
            for a, b in combinations(rows, 2)
            if abs(np.log(a.case.measured / b.case.measured)) > np.log(1 + APART)
        ]
        if len(rows) >= FEWEST and signs:
            found[model] = float(np.mean(signs))
    return found


def summary(predictions: Sequence[Prediction]) -> dict[str, object]:
    """All of them, as they stand in the JSON."""
    return {
        "rows": len(predictions),
        "median_error": error_at(predictions, 0.5),
        "p90_error": error_at(predictions, 0.9),
        "coverage_80": coverage(predictions),
        "half_width": half_width(predictions) if predictions else None,
        "tau": tau(predictions),
    }
