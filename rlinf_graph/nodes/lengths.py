"""Distributions of response lengths to plan with: declared, read from a file, or assumed."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

QUANTILES = 20


@lru_cache(maxsize=4096)
def log_normal(mean: float, limit: float, width: float, count: int = QUANTILES) -> tuple[float, ...]:
    """Quantiles of a log-normal distribution that is cut at a limit, with a given mean.

    Args:
        mean: tokens of the average response; less than `limit`.
        limit: tokens at which sampling stops.
        width: standard deviation of the logarithm before the cut; 0 for equal lengths.
        count: quantiles, at equal steps of probability.

    Returns:
        Lengths in tokens, ascending; the mean is kept to 0.1 %.
    """
    if width <= 0 or mean >= limit:
        return (min(mean, limit),) * count
    spread = np.exp(width * _normal(count))
    low, high = np.log(mean) - 6 * width, np.log(limit) + 8 * width
    for _ in range(40):
        middle = (low + high) / 2
        made = float(np.minimum(np.exp(middle) * spread, limit).mean())
        low, high = (middle, high) if made < mean else (low, middle)
    return tuple(np.minimum(np.exp(low) * spread, limit).tolist())


@lru_cache(maxsize=8)
def _normal(count: int) -> NDArray[np.float64]:
    """Quantiles of the standard normal distribution, at the middles of equal steps."""
    return np.asarray([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
