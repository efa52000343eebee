"""Group advantages and GAE against the papers' formulas, one number after another."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from rlinf_graph import rl
from rlinf_graph.dsl.node import definitions
from rlinf_graph.ir import packed
from rlinf_graph.ir.node_type import Unit
from rlinf_graph.nodes.execution import Execution
from tests.nodes.conftest import make_rollouts


def rewards(values: list[float], group: list[int]) -> rl.Rewards:
    return rl.Rewards(
        index=torch.arange(len(values)),
        group=torch.tensor(group),
        values=torch.tensor(values, dtype=torch.float64),
    )


VALUES = [1.0, 0.0, 0.25, 1.0, 0.0, 0.0, 0.5, 0.5, 0.5]
GROUP = [7, 3, 7, 3, 3, 7, 9, 9, 9]


@pytest.mark.parametrize("normalize", ["std", "none"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_group_advantages_compare_within_groups(normalize: Any, leave_one_out: bool) -> None:
    made = rl.group_advantages(
        rewards(VALUES, GROUP), normalize=normalize, eps=1e-6, leave_one_out=leave_one_out
    )
    for i, value in enumerate(VALUES):
        own = [v for v, g in zip(VALUES, GROUP, strict=True) if g == GROUP[i]]
        others = [
            v for j, (v, g) in enumerate(zip(VALUES, GROUP, strict=True))
            if g == GROUP[i] and j != i
        ]  # fmt: skip
        baseline = statistics.mean(others if leave_one_out else own)
        scale = statistics.stdev(own) + 1e-6 if normalize == "std" else 1.0
        assert float(made.values[i]) == pytest.approx((value - baseline) / scale, abs=1e-9)


def test_a_sample_alone_in_its_group_has_no_advantage() -> None:
    assert rl.group_advantages(rewards([3.0], [0])).values.tolist() == [0.0]


def test_groups_in_which_all_rewards_are_the_same_are_counted(running: Execution) -> None:
    rl.group_advantages(rewards([0.1, 0.1, 0.1, 0.0, 1.0], [0, 0, 0, 1, 1]))
    assert running.metrics.values()["reward/uniform_groups"] == 0.5


def gae_reference(
    reward: list[float], value: list[float], discount: float, trace: float
) -> tuple[list[float], list[float]]:
    """Schulman et al. 2016, eq. 16: a double loop over the discounted errors of all that follow."""
    error = [reward[t] + discount * value[t + 1] - value[t] for t in range(len(reward))]
    advantages = [
        sum((discount * trace) ** (later - t) * error[later] for later in range(t, len(reward)))
        for t in range(len(reward))
    ]
    return advantages, [a + v for a, v in zip(advantages, value, strict=False)]


MASKS = [[0, 0, 1, 1, 1], [0, 1], [0, 1, 1, 0, 0, 1, 1], [0, 0], [0, 0, 0, 1, 0]]


def sequences(seed: int = 0) -> tuple[rl.Rollouts, rl.Values, torch.Tensor]:
    rollouts = make_rollouts(["a"] * len(MASKS), masks=MASKS)
    draw = torch.Generator().manual_seed(seed)
    total, count = len(rollouts.mask), len(MASKS)
    values = rl.Values(
        index=rollouts.index,
        group=rollouts.group,
        lengths=rollouts.lengths,
        values=torch.randn(total + count, generator=draw, dtype=torch.float64),
        mask=rollouts.mask,
    )
    return rollouts, values, torch.randn(total, generator=draw, dtype=torch.float64)


def check(made: Any, values: rl.Values, reward_rows: list[list[float]], ends: list[float]) -> None:
    """Compare with the reference, sample by sample."""
    advantages, returns = made
    start = 0
    for row, mask in enumerate(MASKS):
        own = [t for t, marked in enumerate(mask) if marked]
        state = [float(values.values[start + row + t]) for t in own] + [ends[row]]
        wanted = gae_reference(reward_rows[row], state, 0.9, 0.8)
        for got, want in zip((advantages, returns), wanted, strict=True):
            there = got.values[start : start + len(mask)]
            assert there[own].tolist() == pytest.approx(want, abs=1e-9)
            rest = [t for t in range(len(mask)) if t not in own]
            assert not there[rest].any()
        start += len(mask)


def last_values(values: rl.Values) -> list[float]:
    ends = (values.lengths + 1).cumsum(0) - 1
    return values.values[ends].tolist()


def test_gae_of_token_rewards_bootstraps_where_an_episode_was_cut() -> None:
    rollouts, values, given = sequences()
    terminated = torch.tensor([True, False, False, False, True])
    token_rewards = rl.TokenRewards(
        index=rollouts.index,
        group=rollouts.group,
        lengths=rollouts.lengths,
        values=given,
        mask=rollouts.mask,
        terminated=terminated,
    )
    made = rl.gae(token_rewards, values, discount=0.9, trace=0.8)
    rows = given.split(rollouts.lengths.tolist())
    own = [[float(g) for g, m in zip(row, mask, strict=True) if m]
           for row, mask in zip(rows, MASKS, strict=True)]  # fmt: skip
    ends = [0.0 if t else v for t, v in zip(terminated.tolist(), last_values(values), strict=True)]
    check(made, values, own, ends)


def test_gae_of_sample_rewards_ends_at_the_last_own_token() -> None:
    _, values, _ = sequences()
    given = [1.0, -1.0, 0.5, 4.0, 2.0]
    made = rl.gae(rewards(given, [0] * 5), values, discount=0.9, trace=0.8)
    own = [[0.0] * (sum(mask) - 1) + [r] if sum(mask) else []
           for r, mask in zip(given, MASKS, strict=True)]  # fmt: skip
    check(made, values, own, [0.0] * 5)


def test_whitened_advantages_have_no_mean_and_unit_variance_over_own_tokens() -> None:
    rollouts, values, _ = sequences()
    plain, plain_returns = rl.gae(rewards([1.0] * 5, [0] * 5), values)
    made, returns = rl.gae(rewards([1.0] * 5, [0] * 5), values, whiten=True)
    own = made.values[rollouts.mask]
    assert float(own.mean()) == pytest.approx(0, abs=1e-9)
    assert float(own.var()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(returns.values, plain_returns.values)
    assert not torch.equal(made.values, plain.values)


def test_whitening_makes_gae_wait_for_the_batch() -> None:
    unit = definitions["gae"].unit
    assert callable(unit)
    assert unit({"whiten": True}) is Unit.BATCH
    assert unit({"whiten": False}) is Unit.SAMPLE


@pytest.mark.parametrize("parts", [2, 5])
def test_gae_sample_by_sample_is_gae_of_the_batch(parts: int) -> None:
    _, values, _ = sequences()
    given = rewards([1.0, -1.0, 0.5, 4.0, 2.0], [0] * 5)
    whole, _ = rl.gae(given, values)
    pieces = [
        rl.gae(packed.select(given, rows.numpy()), packed.select(values, rows.numpy()))[0]
        for rows in torch.arange(5).chunk(parts)
    ]
    assert torch.equal(packed.concat(pieces).values, whole.values)


def test_gae_refuses_batches_of_other_samples() -> None:
    _, values, _ = sequences()
    given = rewards([1.0] * 5, [0] * 5)
    with pytest.raises(ValueError, match="Rewards and Values do not hold the same samples"):
        rl.gae(packed.select(given, [1, 0, 2, 3, 4]), values)
