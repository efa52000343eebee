"""GAE over steps of environments, against Stable-Baselines3 and a sum written from the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from rlinf_graph import rl
from rlinf_graph.dsl.node import definitions
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import StepRewards, StepValues
from rlinf_graph.nodes.engine import Outputs, TrainBatch
from rlinf_graph.nodes.metric import Metrics
from tests.nodes.conftest import make_rollouts
from tests.nodes.test_advantage import sequences

DISCOUNT, TRACE = 0.97, 0.9


def recorded(lengths: list[int], seed: int = 0) -> tuple[StepRewards, StepValues]:
    """Random rewards and values; episodes end often, in either way, at last steps too."""
    draw = torch.Generator().manual_seed(seed)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=draw, dtype=torch.float64)

    steps, count = sum(lengths), len(lengths)
    ends = torch.randint(6, (steps,), generator=draw)
    named: dict[str, Any] = {"index": torch.arange(count), "group": torch.arange(count),
                             "lengths": torch.tensor(lengths)}  # fmt: skip
    rewards = StepRewards(**named, values=normal(steps), terminated=ends == 0, truncated=ends == 1)
    finals = normal(steps) * rewards.truncated
    return rewards, StepValues(**named, values=normal(steps + count), finals=finals)


def test_advantages_and_returns_are_those_of_stable_baselines() -> None:
    steps, copies = 64, 5
    rewards, values = recorded([steps] * copies)
    made, returns = rl.gae(rewards, values, discount=DISCOUNT, trace=TRACE)
    buffer = RolloutBuffer(steps, Box(-1, 1, (2,)), Discrete(2), device="cpu", gamma=DISCOUNT,
                           gae_lambda=TRACE, n_envs=copies)  # fmt: skip
    reward, cut, finals, ended = (
        x.unflatten(0, (copies, steps)).T
        for x in (rewards.values, rewards.truncated, values.finals,
                  rewards.terminated | rewards.truncated)
    )  # fmt: skip
    state = values.values.unflatten(0, (copies, steps + 1)).T
    starts = torch.ones(copies)
    for t in range(steps):  # as `collect_rollouts` does where a time limit cuts an episode
        given = reward[t] + cut[t] * DISCOUNT * finals[t]
        buffer.add(np.zeros((copies, 2)), np.zeros((copies, 1)), given.numpy(), starts.numpy(),
                   state[t].float(), torch.zeros(copies))  # fmt: skip
        starts = ended[t].float()
    buffer.compute_returns_and_advantage(state[-1].float(), ended[-1].numpy())
    assert rewards.terminated.any()
    assert rewards.truncated.any()
    for ours, theirs in ((made, buffer.advantages), (returns, buffer.returns)):
        np.testing.assert_allclose(
            ours.values.unflatten(0, (copies, steps)).T.numpy(), theirs, rtol=0, atol=1e-5
        )


def reference(rewards: StepRewards, values: StepValues) -> tuple[list[float], list[float]]:
    """Schulman et al. 2016, eq. 16: the errors of all steps that follow in the same episode."""
    advantages: list[float] = []
    start = 0
    for row, length in enumerate(rewards.lengths.tolist()):
        state = values.values[start + row : start + row + length + 1].tolist()
        errors, last = [], []
        for t in range(length):
            at = start + t
            after = float(values.finals[at]) if rewards.truncated[at] else state[t + 1]
            after = 0.0 if rewards.terminated[at] else after
            errors.append(float(rewards.values[at]) + DISCOUNT * after - state[t])
            last.append(bool(rewards.terminated[at] or rewards.truncated[at]))
        for t in range(length):
            end = next((u for u in range(t, length) if last[u]), length - 1)
            weights = [(DISCOUNT * TRACE) ** (u - t) for u in range(t, end + 1)]
            advantages.append(sum(w * errors[t + k] for k, w in enumerate(weights)))
        start += length
    owner = torch.arange(len(rewards)).repeat_interleave(rewards.lengths)
    now = values.values[torch.arange(len(owner)) + owner]
    return advantages, (torch.tensor(advantages, dtype=torch.float64) + now).tolist()


@pytest.mark.parametrize("lengths", [[7, 1, 20, 3], [1, 1, 1], [12], [0, 4, 0]], ids=str)
def test_copies_may_have_taken_different_steps(lengths: list[int]) -> None:
    rewards, values = recorded(lengths, seed=2)
    made = rl.gae(rewards, values, discount=DISCOUNT, trace=TRACE)
    for got, wanted in zip(made, reference(rewards, values), strict=True):
        assert got.lengths.tolist() == lengths
        assert got.values.tolist() == pytest.approx(wanted, abs=1e-9)


def test_an_end_of_the_task_counts_before_a_time_limit() -> None:
    rewards, values = recorded([8, 8], seed=3)
    both = rewards.replace(truncated=rewards.truncated | rewards.terminated)
    plain, _ = rl.gae(rewards, values, discount=DISCOUNT)
    made, _ = rl.gae(both, values.replace(finals=torch.ones(16)), discount=DISCOUNT)
    own = rewards.terminated
    assert own.any()
    assert torch.equal(made.values[own], plain.values[own])


def test_copy_by_copy_is_the_batch() -> None:
    rewards, values = recorded([9, 4, 17])
    whole, _ = rl.gae(rewards, values)
    pieces = [rl.gae(packed.select(rewards, [i]), packed.select(values, [i]))[0] for i in range(3)]
    assert torch.equal(packed.concat(pieces).values, whole.values)


def test_whitened_advantages_have_no_mean_and_unit_variance() -> None:
    rewards, values = recorded([30, 30])
    made, returns = rl.gae(rewards, values, whiten=True)
    assert float(made.values.mean()) == pytest.approx(0, abs=1e-9)
    assert float(made.values.var()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(returns.values, rl.gae(rewards, values)[1].values)


def test_rewards_and_values_are_of_one_kind() -> None:
    rewards, values = recorded([4] * 5)
    _, tokens, _ = sequences()
    given = rl.Rewards(index=rewards.index, group=rewards.group, values=torch.zeros(5))
    said = "StepRewards and Values do not go together: StepRewards go with StepValues"
    with pytest.raises(rl.CompileError, match=f"RG0101.*{said}"):
        rl.gae(rewards, tokens)
    with pytest.raises(rl.CompileError, match=r"RG0101.*Rewards and StepValues do not go together"):
        rl.gae(given, values)


def episode(steps: int) -> rl.Transitions:
    draw = torch.Generator().manual_seed(0)
    no = torch.zeros(2 * steps, dtype=torch.bool)
    return rl.Transitions(
        index=torch.arange(2),
        group=torch.arange(2),
        lengths=torch.tensor([steps, steps]),
        observations=torch.zeros(2 * steps + 2, 1),
        actions=torch.zeros(2 * steps, dtype=torch.int64),
        logprobs=torch.randn(2 * steps, generator=draw, dtype=torch.float64),
        versions=torch.zeros(2 * steps, dtype=torch.int64),
        reward_values=torch.zeros(2 * steps),
        terminated=no,
        truncated=no,
        finals=[[], []],
    )


@pytest.mark.parametrize("normalize", ["token", "sequence"])
@pytest.mark.parametrize("kind", [rl.PPOLoss, rl.ValueLoss, rl.SupervisedLoss])
def test_losses_of_steps_are_those_of_tokens_without_prompts(kind: Any, normalize: Any) -> None:
    steps = episode(5)
    tokens = make_rollouts(["a", "b"], masks=[[1] * 5] * 2).replace(logprobs=steps.logprobs)
    draw = torch.Generator().manual_seed(1)
    names = ("advantages", "returns", "old_values", "reference", "proximal")
    given = {n: torch.randn(10, generator=draw, dtype=torch.float64) for n in names}
    said = steps.logprobs + 0.3 * given["proximal"]
    outputs, loss = Outputs(said, said.abs(), said), kind(normalize=normalize)
    ours, theirs = Metrics(), Metrics()
    of_steps = loss(outputs, TrainBatch(steps, **given), ours)
    assert of_steps == loss(outputs, TrainBatch(tokens, **given), theirs)
    assert ours.values() == theirs.values()


SIM = rl.Env("CartPole-v1", count=2, name="sim")
POLICY = rl.Model("mlp:16", name="policy", head="action", env=SIM)
CRITIC = rl.Model("org/critic", name="critic", head="value")


@rl.pipeline
def mixed() -> None:
    def interact(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
        return rl.step(SIM, observations, rl.act(POLICY, observations))

    _, made = rl.unroll(interact, start=rl.reset(SIM), length=4)
    rollouts = rl.rollout(rl.Model("org/writer"), rl.dataset("org/data", batch=4))
    rl.gae(made.rewards, rl.values(CRITIC, rollouts))


def test_a_pipeline_that_mixes_the_kinds_is_reported() -> None:
    graph = mixed.build()
    check = definitions["gae"].check
    assert check is not None
    (found,) = check(graph.node("gae"), graph)
    assert found.code == "RG0101"
    assert "StepRewards and Values do not go together" in found.message
    assert found.span is not None
    assert found.span.file == __file__
    assert [note.split(" come from ")[0] for note in found.notes] == [
        "the StepRewards",
        "the Values",
    ]
