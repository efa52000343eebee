"""A policy and a critic over an environment, step by step, as a run puts them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from rlinf_graph import rl
from rlinf_graph.engines.gymnasium.environments import GymnasiumEnvironments
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir import packed, ragged
from rlinf_graph.ir.batches import Observations, StepValues, Transitions
from rlinf_graph.ir.graph import ModelDef, Space
from rlinf_graph.nodes.engine import Key

Make = Callable[..., GymnasiumEnvironments]
STEPS, COPIES, DISCOUNT, TRACE = 40, 4, 0.95, 0.9


def short() -> gym.Env[Any, Any]:
    return gym.wrappers.TimeLimit(gym.make("CartPole-v1"), 12)


def engine(head: str) -> TorchEngine:
    spaces: Any = {"observation": Space((4,)), "action": Space(choices=2)}
    model = ModelDef(head, "mlp:16", head, "float64", "random", **spaces)
    return TorchEngine(model, seed=0, device="cpu", dtype="float64", trainable=False)


def interact(environments: GymnasiumEnvironments, policy: TorchEngine, groups: int) -> Transitions:
    parts = np.split(np.arange(COPIES), groups)
    whole, made = environments.reset(), list[Transitions]()
    seen: list[Observations] = [packed.select(whole, rows) for rows in parts]
    for step in range(STEPS):
        for group in range(groups):
            actions = policy.act(seen[group], Key(0, "act", 0, (step,)), 3, greedy=False)
            seen[group], one = environments.step(seen[group], actions)
            made.append(one)
    return ragged.join(made)


@pytest.mark.parametrize("groups", [2, 4])
def test_an_episode_does_not_depend_on_the_groups(make: Make, groups: int) -> None:
    policy = engine("action")
    whole = interact(make(short, COPIES), policy, 1)
    assert whole.lengths.tolist() == [STEPS] * COPIES
    assert whole.versions.unique().tolist() == [3]
    again = interact(make(short, COPIES, groups=groups), policy, groups)
    for name in ("observations", "actions", "reward_values", "terminated", "truncated", "index"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    torch.testing.assert_close(again.logprobs, whole.logprobs, rtol=0, atol=1e-12)


def test_its_advantages_are_those_of_stable_baselines(make: Make) -> None:
    critic, episode = engine("value"), interact(make(short, COPIES), engine("action"), 1)
    values, finals = critic.step_values(episode)
    named: dict[str, Any] = {n: getattr(episode, n) for n in ("index", "group", "lengths")}
    judged = StepValues(**named, values=values, finals=finals)
    made, returns = rl.gae(episode.rewards, judged, discount=DISCOUNT, trace=TRACE)

    def by_step(given: Tensor) -> Tensor:
        return given.unflatten(0, (COPIES, -1)).transpose(0, 1)

    buffer = RolloutBuffer(STEPS, Box(-1, 1, (4,)), Discrete(2), device="cpu", gamma=DISCOUNT,
                           gae_lambda=TRACE, n_envs=COPIES)  # fmt: skip
    seen, cut = by_step(episode.observations), by_step(episode.truncated)
    rewards, ended = by_step(episode.reward_values).clone(), cut | by_step(episode.terminated)
    lasts = [iter(row) for row in episode.finals]
    starts = np.ones(COPIES)
    for t in range(STEPS):  # as in `collect_rollouts`
        state = critic.model(seen[t]).detach().flatten()
        for copy in cut[t].nonzero().flatten().tolist():
            last = next(lasts[copy])
            rewards[t, copy] += DISCOUNT * float(critic.model(last[None]))
        buffer.add(seen[t].numpy(), np.zeros((COPIES, 1)), rewards[t].numpy(), starts,
                   state.float(), torch.zeros(COPIES))  # fmt: skip
        starts = ended[t].numpy()
    last_values = critic.model(seen[STEPS]).detach().float()
    buffer.compute_returns_and_advantage(last_values, ended[-1].numpy())
    assert episode.terminated.any()
    assert episode.truncated.any()
    for ours, theirs in ((made, buffer.advantages), (returns, buffer.returns)):
        np.testing.assert_allclose(by_step(ours.values).numpy(), theirs, rtol=0, atol=1e-5)
