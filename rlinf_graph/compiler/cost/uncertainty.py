"""How far off an estimate may be: half the width of its 80 % interval, as a logarithm.

A width `w` says that in four of five cases the true figure lies between `estimate * exp(-w)` and
`estimate * exp(w)`. Widths of closed forms come from published measurements, each model predicted
with constants that its rows had no part in (`benchmarks/cost_model.py`); those of profiles from
how well the correction fits and how much repetitions differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

NORMAL_80 = 1.2816
"""Standard deviations of a normal distribution on each side that hold 80 % of it."""


@dataclass(frozen=True)
class Widths:
    """Of the closed forms, on one kind of device.

    Attributes:
        sampling: of a rollout.
        passes: of forward passes and training.
        sync: of a delivery of weights.
        iteration: of a whole iteration.
        compared: of the ratio of two plans of one pipeline, whose errors have much in common: half
            of the published pairs are predicted nearer. A plan that comes out faster by more is
            faster in three of four cases; one by less is a tie.
    """

    sampling: float
    passes: float
    sync: float
    iteration: float
    compared: float


def of_profile(residual: float, spread: float) -> float:
    """The width of a profiled figure.

    Args:
        residual: root mean square of the relative errors of the fit.
        spread: standard deviation of the logarithm of a repetition.
    """
    return NORMAL_80 * math.hypot(residual, spread)


def together(parts: Iterable[tuple[float, float]]) -> float:
    """The width of a sum, from the seconds and the width of each part.

    Errors of one origin go the same way, so the widths add up by share.
    """
    known = list(parts)
    total = sum(seconds for seconds, _ in known)
    return sum(seconds * width for seconds, width in known) / total if total else 0.0


def interval(seconds: float, width: float) -> tuple[float, float]:
    """The ends of the 80 % interval."""
    return seconds * math.exp(-width), seconds * math.exp(width)
