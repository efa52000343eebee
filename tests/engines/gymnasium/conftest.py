"""An environment whose episodes are known by arithmetic, alone and in a version of many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlinf_graph.engines.gymnasium.environments import GymnasiumEnvironments
from rlinf_graph.ir.batches import Actions, Observations
from rlinf_graph.ir.graph import EnvDef

SEES = Box(-np.inf, np.inf, (2,), dtype=np.float64)
DOES = Discrete(3)


class Count(gym.Env[Any, Any]):
    """Shows a number drawn at the start and the steps made.

    Action 1 ends the episode; after 5 steps it is cut; the reward is the number plus the action.
    """

    observation_space = SEES
    action_space = DOES

    def __init__(self, limit: int = 5) -> None:
        self.limit = limit

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.number, self.steps = self.np_random.random(), 0
        return np.array([self.number, 0.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        seen = np.array([self.number, self.steps])
        return seen, self.number + action, bool(action == 1), self.steps >= self.limit, {}


class CountTogether(VectorEnv[Any, Any, Any]):
    """The same, many at once: begins anew in the same step, and takes a seed for each."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012  as in VectorEnv

    def __init__(self, num_envs: int, limit: int = 5) -> None:
        self.num_envs, self.limit = num_envs, limit
        self.single_observation_space, self.single_action_space = SEES, DOES
        self.observation_space = batch_space(SEES, num_envs)
        self.action_space = batch_space(DOES, num_envs)
        self.seen = np.zeros((num_envs, 2))
        self.rewards = np.zeros(num_envs, dtype=np.float32)
        self.draws = [np.random.default_rng() for _ in range(num_envs)]

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.draws = [seeding.np_random(mine)[0] for mine in seed]
        self._begin(np.ones(self.num_envs, dtype=bool))
        return self.seen, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.seen[:, 1] += 1
        self.rewards = self.seen[:, 0] + actions
        terminated, truncated = actions == 1, self.seen[:, 1] >= self.limit
        done, infos = terminated | truncated, {}
        if done.any():
            finals = np.full(self.num_envs, None, dtype=object)
            for place in np.flatnonzero(done):
                finals[place] = self.seen[place].copy()
            infos = {"final_obs": finals, "_final_obs": done}
            self._begin(done)
        return self.seen, self.rewards, terminated, truncated, infos

    def _begin(self, which: Any) -> None:
        for place in np.flatnonzero(which):
            self.seen[place] = self.draws[place].random(), 0


class CountLater(CountTogether):
    """One that begins anew in the step after, as gymnasium's own CartPole of many at once."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  as in VectorEnv


class CountUnseeded(CountTogether):
    """One that takes a single seed."""

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        VectorEnv.reset(self, seed=seed)
        return super().reset(seed=[seed] * self.num_envs)


def count(**options: Any) -> Count:
    return Count(**options)


@pytest.fixture(autouse=True, scope="session")
def registered() -> Iterator[None]:
    known = {"Count": None, "Together": CountTogether, "Later": CountLater, "Single": CountUnseeded}
    for name, many in known.items():
        gym.register(id=f"tests/{name}-v0", entry_point=count, vector_entry_point=many)
    yield
    for name in known:
        del gym.registry[f"tests/{name}-v0"]


@pytest.fixture
def make() -> Iterator[Callable[..., GymnasiumEnvironments]]:
    made: list[GymnasiumEnvironments] = []

    def making(path: Any, count: int, *, groups: int = 1, seed: int = 0, **fields: Any) -> Any:
        env = EnvDef("sim", path, count, **fields)
        made.append(GymnasiumEnvironments(env, seed=seed, groups=groups))
        return made[-1]

    yield making
    for one in made:
        one.close()


def actions(observations: Observations, values: Any) -> Actions:
    count = len(observations)
    return Actions(
        index=observations.index,
        group=observations.group,
        values=torch.as_tensor(values),
        logprobs=torch.zeros(count),
        versions=torch.zeros(count, dtype=torch.int64),
    )
