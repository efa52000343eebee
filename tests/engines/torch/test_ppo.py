"""PPO against Stable-Baselines3: its losses and gradients on the same minibatch."""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir.batches import Transitions
from rlinf_graph.ir.graph import Space
from rlinf_graph.nodes.engine import TrainBatch
from rlinf_graph.nodes.loss import PPOLoss, ValueLoss
from rlinf_graph.nodes.metric import Metrics
from tests.engines.torch.small import (
    network,
)


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        return True


def collected(env: str, **options: Any) -> PPO:
    """Stable-Baselines3's PPO with a rollout, and another policy than the one that made it."""
    theirs = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu",
                 normalize_advantage=False, max_grad_norm=1e9, **options)  # fmt: skip
    _, callback = theirs._setup_learn(64, Stop())
    theirs.collect_rollouts(theirs.env, callback, theirs.rollout_buffer, 64)  # pyright: ignore[reportArgumentType]  set by PPO
    draws = torch.Generator().manual_seed(0)
    for parameter in theirs.policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
    return theirs


def trained_on(theirs: BaseAlgorithm, head: str) -> tuple[TorchEngine, dict[str, Tensor]]:
    """Our engine with their weights; and their gradients, under our names."""
    does, policy = theirs.action_space, cast("Any", theirs.policy)
    discrete = isinstance(does, gym.spaces.Discrete)
    action = Space(choices=int(does.n)) if discrete else Space(cast("Any", does.shape))
    observation = Space(cast("Any", theirs.observation_space.shape))
    engine = network(head, path="mlp:64x64", observation=observation, action=action,
                     dtype="float32", trainable=True)  # fmt: skip
    mlp, last = policy.mlp_extractor, policy.action_net if head == "action" else policy.value_net
    layers = mlp.policy_net if head == "action" else mlp.value_net
    named = {f"layers.{i}.{kind}": getattr(layer, kind)
             for i, layer in enumerate((layers[0], layers[2], last))
             for kind in ("weight", "bias")}  # fmt: skip
    if "log_std" in engine.weights():
        named["log_std"] = policy.log_std
    engine.update_weights((n, p.detach()) for n, p in named.items())
    return engine, named


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("entropy", [0.0, 0.01])
def test_ppo_is_that_of_stable_baselines(env: str, entropy: float) -> None:
    """The loss of a minibatch, and its gradients, for the policy and for the critic."""
    theirs = collected(env, ent_coef=entropy, clip_range=0.05)
    policy, policy_names = trained_on(theirs, "action")
    critic, critic_names = trained_on(theirs, "value")
    (data,) = theirs.rollout_buffer.get(64)
    actions = data.actions.long().flatten() if env == "CartPole-v1" else data.actions
    index, no = torch.arange(64), torch.zeros(64, dtype=torch.bool)
    samples = Transitions(
        index=index,
        group=index,
        lengths=torch.ones(64, dtype=torch.int64),
        observations=torch.stack([data.observations, data.observations + 1], 1).flatten(0, 1),
        actions=actions,
        logprobs=data.old_log_prob,
        versions=index,
        reward_values=torch.zeros(64),
        terminated=no,
        truncated=no,
        finals=[[] for _ in index],
    )
    batch = TrainBatch(samples, advantages=data.advantages, returns=data.returns)
    metrics = Metrics()
    loss = PPOLoss(clip=0.05, entropy_bonus=entropy)
    weight = policy.accumulate([batch], loss, metrics)
    assert critic.accumulate([batch], ValueLoss(clip=None), metrics) == weight == 64
    theirs.train()
    said, made = theirs.logger.name_to_value, metrics.values()
    whole = said["train/policy_gradient_loss"] + entropy * said["train/entropy_loss"]
    scale = 1 + abs(whole)
    assert made["train/loss"] == pytest.approx(whole, abs=1e-6 * scale)
    assert made["value/loss"] == pytest.approx(said["train/value_loss"] / 2, rel=1e-6)
    assert 0 < made["train/clip_fraction"] < 1
    # Their value loss is the squared error, halved by `vf_coef`; ours is half of it.
    for engine, names in ((policy, policy_names), (critic, critic_names)):
        for name, gradient in engine.gradients().items():
            expected = cast("Tensor", names[name].grad)
            near = 1e-5 * max(1, float(expected.abs().max()))
            torch.testing.assert_close(gradient / weight, expected, rtol=1e-4, atol=near)
