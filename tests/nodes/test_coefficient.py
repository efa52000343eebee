"""A KL coefficient that adapts: constants, the controller, and the penalty that reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlinf_graph import rl
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.ir import packed
from rlinf_graph.nodes.execution import Execution
from tests.nodes.conftest import make_rollouts

policy = rl.Model("Qwen/Qwen2.5-1.5B-Instruct")
reference = policy.frozen()
critic = rl.Model("Qwen/Qwen2.5-1.5B-Instruct", name="critic", head="value")


def samples(divergences: list[list[float]]) -> tuple[rl.Rollouts, rl.ReferenceLogprobs]:
    """Two tokens of prompt, then tokens which diverge by so much."""
    masks = [[0, 0] + [1] * len(row) for row in divergences]
    rollouts = make_rollouts(["yes"] * len(masks), masks=masks)
    off = torch.zeros(len(rollouts.mask), dtype=torch.float64)
    off[rollouts.mask] = torch.tensor([x for row in divergences for x in row], dtype=torch.float64)
    off[~rollouts.mask] = 100.0  # of a prompt: counts for nothing
    made = rl.ReferenceLogprobs(
        index=rollouts.index,
        group=rollouts.group,
        lengths=rollouts.lengths,
        values=rollouts.logprobs - off,
    )
    return rollouts, made


@pytest.mark.parametrize(
    ("divergences", "expected"),
    [
        ([[1.0, 2.0], [3.5, 0.0]], 0.5 * (1 + (3.25 / 3 - 1) * 2 / 100)),
        ([[9.0], [9.0, 9.0], [0.0], [9.0]], 0.5 * (1 + 0.2 * 4 / 100)),
        ([[-4.0], [1.0]], 0.5 * (1 - 0.2 * 2 / 100)),
    ],
)
def test_the_controller_by_hand(
    divergences: list[list[float]], expected: float, running: Execution
) -> None:
    rollouts, against = samples(divergences)
    made = rl.adapt_kl(rl.constant(0.5), rollouts, against, target=3.0, horizon=100)
    assert made.values.tolist() == pytest.approx([expected], rel=1e-12)
    metrics = running.metrics.values()
    assert metrics["kl/coefficient"] == 0.5
    mean = sum(map(sum, divergences)) / len(divergences)
    assert metrics["kl/per_sample"] == pytest.approx(mean)


def test_without_samples_the_coefficient_stays() -> None:
    rollouts, against = samples([[1.0]])
    none, nothing = packed.select(rollouts, []), packed.select(against, [])
    made = rl.adapt_kl(rl.constant(0.5), none, nothing, target=3.0, horizon=100)
    assert made.values.tolist() == [0.5]


def test_a_coefficient_weighs_as_beta_does() -> None:
    rollouts, against = samples([[1.0, 2.0], [3.5]])
    rewards = rl.Rewards(
        index=rollouts.index,
        group=rollouts.group,
        values=torch.tensor([1.0, 2.0], dtype=torch.float64),
    )
    plain = rl.kl_penalty(rewards, rollouts, against, beta=0.25)
    adapted = rl.kl_penalty(rewards, rollouts, against, coefficient=rl.constant(0.25))
    assert torch.equal(plain.values, adapted.values)
    assert adapted.values[rollouts.mask].tolist() == pytest.approx([-0.25, 0.5, 1.125])


def test_one_of_two_and_one_number() -> None:
    rollouts, against = samples([[1.0]])
    rewards = rl.Rewards(
        index=rollouts.index, group=rollouts.group, values=torch.zeros(1, dtype=torch.float64)
    )
    penalty: Any = rl.kl_penalty
    for options in ({}, {"beta": 0.1, "coefficient": rl.constant(0.1)}):
        with pytest.raises(rl.CompileError, match="either `beta` or `coefficient`"):
            penalty(rewards, rollouts, against, **options)
    with pytest.raises(rl.CompileError, match="one number, and 2 came"):
        rl.kl_penalty(rewards, rollouts, against, coefficient=rl.constant(0.1, 0.2))


def pipeline_of(numbers: tuple[float, ...], **options: float) -> rl.Pipeline:
    given: Any = {"target": 6.0, "horizon": 1e4} | options

    @rl.pipeline
    def adaptive() -> None:
        rollouts = rl.rollout(policy, rl.dataset("openai/gsm8k", batch=8), samples=4)
        against = rl.logprobs(reference, rollouts)
        beta = rl.state(rl.constant(*numbers))
        rewards = rl.verify(rollouts, lambda answer, truth: float(answer == truth))
        shaped = rl.kl_penalty(rewards, rollouts, against, coefficient=beta)
        rl.carry(rl.adapt_kl(beta, rollouts, against, **given), into=beta)
        advantages, _ = rl.gae(shaped, rl.values(critic, rollouts))
        rl.sync(rl.train(policy, rollouts, advantages, loss=rl.PPOLoss()), into=policy)

    return adaptive


def test_a_penalty_whose_coefficient_adapts_takes_the_whole_batch() -> None:
    graph = run_passes(pipeline_of((0.05,)).build())
    assert graph.node("kl_penalty").unit is rl.BATCH
    assert graph.node("adapt_kl").volume[0].samples == graph.node("state").volume[0].samples == 1


@pytest.mark.parametrize(
    ("numbers", "options", "message"),
    [
        ((), {}, "rl.constant of nothing"),
        ((float("nan"),), {}, "rl.constant of nan"),
        ((0.05,), {"target": 0.0}, "`target` of `adapt_kl` is 0.0"),
        ((0.05,), {"horizon": -1.0}, "`horizon` of `adapt_kl` is -1.0"),
    ],
)
def test_numbers_that_control_nothing_are_refused(
    numbers: tuple[float, ...], options: dict[str, float], message: str
) -> None:
    with pytest.raises(rl.CompileError) as caught:
        run_passes(pipeline_of(numbers, **options).build())
    assert [d.code for d in caught.value.diagnostics] == ["RG0104"]
    assert message in str(caught.value)


def test_a_penalty_of_two_coefficients_is_refused_where_it_is_called() -> None:
    penalty: Any = rl.kl_penalty

    @rl.pipeline
    def doubled() -> None:
        rollouts = rl.rollout(policy, rl.dataset("openai/gsm8k", batch=8), samples=4)
        rewards = rl.verify(rollouts, lambda answer, truth: float(answer == truth))
        against, beta = rl.logprobs(reference, rollouts), rl.state(rl.constant(0.05))
        rl.carry(rl.adapt_kl(beta, rollouts, against, target=6.0, horizon=1e4), into=beta)
        shaped = penalty(rewards, rollouts, against, beta=0.05, coefficient=beta)
        advantages, _ = rl.gae(shaped, rl.values(critic, rollouts))
        rl.sync(rl.train(policy, rollouts, advantages, loss=rl.PPOLoss()), into=policy)

    with pytest.raises(rl.CompileError) as caught:
        run_passes(doubled.build())
    assert [d.code for d in caught.value.diagnostics] == ["RG0104"]
