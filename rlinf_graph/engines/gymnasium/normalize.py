"""Running moments of observations."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FIRST_COUNT = 1e-4
"""What mean 0 and variance 1 count for before the first observation, as in Stable-Baselines3."""

EPSILON = 1e-8
LIMIT = 10.0


class Moments:
    """Mean and variance of all observations so far.

    Batches are merged by Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm
    for computing sample variances", eq. 2.1; in float64.

    Args:
        shape: of one observation.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean: Array = np.zeros(shape)
        self.variance: Array = np.ones(shape)
        self.count = FIRST_COUNT

    def update(self, observations: Array) -> None:
        """Take in a batch, `(n, *shape)`."""
        batch = np.asarray(observations, dtype=np.float64)
        number = len(batch)
        total = self.count + number
        mean = batch.sum(axis=0) / number
        apart = mean - self.mean
        squares = np.square(batch - mean).sum(axis=0) + self.variance * self.count
        self.variance = (squares + np.square(apart) * (self.count * number / total)) / total
        self.mean = self.mean + apart * (number / total)
        self.count = total

    def apply(self, observations: Array) -> Array:
        """Shift to mean 0, scale to variance 1, clip to ±10; float32 of the same shape."""
        scaled = (observations - self.mean) / np.sqrt(self.variance + EPSILON)
        return np.minimum(np.maximum(scaled, -LIMIT), LIMIT).astype(np.float32)
