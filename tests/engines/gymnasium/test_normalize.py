from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd

from rlinf_graph.engines.gymnasium.environments import GymnasiumEnvironments
from rlinf_graph.engines.gymnasium.normalize import Moments
from tests.engines.gymnasium.conftest import actions

Make = Callable[..., GymnasiumEnvironments]


def test_moments_are_those_of_stable_baselines() -> None:
    draws = np.random.default_rng(0)
    moments, theirs = Moments((3,)), RunningMeanStd(shape=(3,))
    for count in (8, 1, 5, 8, 100):
        batch = draws.normal(50, 3, (count, 3))
        moments.update(batch)
        theirs.update(batch)
        np.testing.assert_allclose(moments.mean, theirs.mean, rtol=1e-12)
        np.testing.assert_allclose(moments.variance, theirs.var, rtol=1e-12)
    assert moments.count == pytest.approx(theirs.count)


def test_moments_are_those_of_all_observations() -> None:
    everything = np.random.default_rng(0).normal(3, 2, (500, 2))
    moments = Moments((2,))
    for part in np.split(everything, 50):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, everything.var(axis=0), rtol=1e-4)
    scaled = moments.apply(np.array([[1e9, -1e9], everything[0]]))
    assert scaled.dtype == np.float32
    assert scaled[0].tolist() == [10, -10]
    expected = (everything[0] - everything.mean(axis=0)) / everything.std(axis=0)
    np.testing.assert_allclose(scaled[1], expected, rtol=1e-3)


def test_observations_are_normalized_by_those_of_all_copies(make: Make) -> None:
    """The moments take in each group's observations, and no last ones of episodes."""
    environments = make("tests/Count-v0", 4, groups=2, normalize=True)
    plain = make("tests/Count-v0", 4, groups=2)
    theirs = RunningMeanStd(shape=(2,))

    def scaled(values: torch.Tensor) -> torch.Tensor:
        return (values - torch.as_tensor(theirs.mean)) / torch.as_tensor(theirs.var + 1e-8).sqrt()

    seen, raw = environments.reset(), plain.reset()
    for part in raw.values.double().split(2):
        theirs.update(part.numpy())
    torch.testing.assert_close(seen.values[2:].double(), scaled(raw.values)[2:], rtol=0, atol=1e-4)
    for step in range(12):
        chosen = [0, 2, 1, 0] if step == 3 else [0, 2, 0, 2]
        seen, made = environments.step(seen, actions(seen, chosen))
        raw, known = plain.step(raw, actions(raw, chosen))
        theirs.update(raw.values.double()[:2].numpy())
        torch.testing.assert_close(
            seen.values[:2].double(), scaled(raw.values)[:2], rtol=0, atol=1e-4
        )
        for cut, last in zip(made.finals[:2], known.finals[:2], strict=True):
            for one, other in zip(cut, last, strict=True):
                torch.testing.assert_close(one.double(), scaled(other), rtol=0, atol=1e-4)
        theirs.update(raw.values.double()[2:].numpy())
        torch.testing.assert_close(
            seen.values[2:].double(), scaled(raw.values)[2:], rtol=0, atol=1e-4
        )
