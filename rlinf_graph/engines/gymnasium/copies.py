"""Copies of an environment that step together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import VectorEnv

from rlinf_graph.engines.gymnasium.normalize import Moments

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Step:
    """What `n` copies did in one step.

    Attributes:
        observations: `(n, *shape)`; the first of a new episode where one ended.
        rewards: float64 `(n,)`.
        terminated, truncated: bool `(n,)`, never both.
        finals: the last observation of a truncated episode by the copy's place.
        ended: places of the copies whose episodes ended.
        returns: of the episodes that ended, the sums of their rewards.
        lengths: of those episodes, in steps.
    """

    observations: Array
    rewards: Array
    terminated: Array
    truncated: Array
    finals: dict[int, Array]
    ended: list[int]
    returns: list[float]
    lengths: list[int]


class Copies:
    """Copies in one vector environment, which begins anew in the step that ends an episode.

    Args:
        vector: of autoreset mode `SAME_STEP`.
        moments: to normalize observations with, if any.
        learn: whether the moments take the observations in.
    """

    def __init__(
        self,
        vector: VectorEnv[Any, Any, Any],
        moments: Moments | None,
        *,
        learn: bool,
    ) -> None:
        self.vector = vector
        self._moments, self._learn = moments, learn
        self._sees, self._does = vector.single_observation_space, vector.single_action_space
        self._returns = np.zeros(vector.num_envs)
        self._lengths = np.zeros(vector.num_envs, dtype=np.int64)

    def reset(self, seeds: list[int] | None = None) -> Array:
        """Begin a new episode in each; the first observations.

        Args:
            seeds: one for each copy; without them the generators go on from where they stand.
        """
        given, _ = self.vector.reset(seed=seeds)  # pyright: ignore[reportArgumentType]  a seed for each copy
        self._returns[:] = 0
        self._lengths[:] = 0
        return self._seen(given, new=True)

    def step(self, actions: Array) -> Step:
        """Act in each copy.

        Args:
            actions: int64 `(n,)` from 0, or floats `(n, size)`, which are clipped to the bounds of
                the action space, as Stable-Baselines3 does.
        """
        given, rewards, terminated, truncated, infos = self.vector.step(self._acted(actions))
        rewards, terminated = np.array(rewards, np.float64), np.array(terminated, np.bool_)
        truncated = np.greater(truncated, terminated)
        observations = self._seen(given, new=True)
        self._returns += rewards
        self._lengths += 1
        step = Step(observations, rewards, terminated, truncated, {}, [], [], [])
        done = terminated | truncated
        if done.any():
            step.ended = np.flatnonzero(done).tolist()
            step.returns, step.lengths = self._returns[done].tolist(), self._lengths[done].tolist()
            self._returns[done], self._lengths[done] = 0, 0
            for place in np.flatnonzero(truncated).tolist():
                last = np.asarray(infos["final_obs"][place])
                step.finals[place] = np.asarray(self._seen(last, new=False))
        return step

    def close(self) -> None:
        """End them."""
        self.vector.close()

    def _acted(self, actions: Array) -> Array:
        space = self._does
        if isinstance(space, Discrete):
            return actions + space.start if space.start else actions
        assert isinstance(space, Box)
        bounded = np.minimum(np.maximum(actions.reshape(-1, *space.shape), space.low), space.high)
        return bounded.astype(space.dtype, copy=False)

    def _seen(self, given: Any, *, new: bool) -> Array:
        """A copy in the type that batches hold; the moments take in what is `new`."""
        if self._moments is not None:
            if new and self._learn:
                self._moments.update(given)
            return self._moments.apply(given)
        space = self._sees
        if isinstance(space, Discrete):
            return given.astype(np.int64) - space.start
        return given.astype(np.uint8 if space.dtype == np.uint8 else np.float32)
