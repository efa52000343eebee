"""Evaluation: greedy scores, and pass@k as Chen et al. 2021 estimate it."""

from __future__ import annotations

import itertools
from math import comb

import pytest
import torch

from rlinf_graph import rl
from rlinf_graph.nodes.evaluate import pass_at_k
from rlinf_graph.nodes.execution import Execution
from tests.nodes.conftest import TableEngine

POLICY = rl.Model("policy")
ANSWERS = {"a": ["1", "2", "1", "2"], "b": ["2", "2", "2", "2"], "c": ["1", "1", "1", "1"]}


def problems() -> rl.Prompts:
    index = torch.arange(3)
    truth = [{"truth": "1"} for _ in range(3)]
    return rl.Prompts(index=index, group=index, prompts=["a", "b", "c"], columns=truth)


def is_right(answer: str, truth: str) -> float:
    return float(answer == truth)


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer() -> None:
    """The definition itself: all ways to draw k of n."""
    for samples, right, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if right > samples or k > samples:
            continue
        draws = list(itertools.combinations([1] * right + [0] * (samples - right), k))
        wanted = sum(any(draw) for draw in draws) / len(draws)
        made = pass_at_k(torch.tensor([samples]), torch.tensor([right]), k)
        assert float(made) == pytest.approx(wanted, abs=1e-12)
        assert wanted == pytest.approx(1 - comb(samples - right, k) / comb(samples, k))


def test_greedy_evaluation_emits_the_mean(running: Execution) -> None:
    engine = running.engines["policy"] = TableEngine(ANSWERS)  # type: ignore[assignment]  a part
    running.iteration, running.versions["policy"] = 20, 19
    assert rl.evaluate(POLICY, problems(), is_right, every=20, max_tokens=7) is None
    made = running.metrics.values()
    assert made["eval/score"] == pytest.approx(2 / 3)
    ((sampling, key, version),) = engine.asked
    assert (sampling.samples, sampling.temperature, sampling.max_tokens) == (1, 0.0, 7)
    assert (key.seed, key.node, key.iteration, version) == (1, "node", 20, 19)


def test_pass_at_k_is_emitted_under_its_name(running: Execution) -> None:
    running.engines["policy"] = TableEngine(ANSWERS)  # type: ignore[assignment]  a part
    rl.evaluate(
        POLICY, problems(), is_right, samples=4, temperature=1.0, pass_at=2, name="held_out"
    )
    made = running.metrics.values()
    assert made["held_out/score"] == pytest.approx(6 / 12)
    assert made["held_out/pass@2"] == pytest.approx((1 - 1 / 6 + 0 + 1) / 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "`every` of `evaluate policy` is 0; it has to be at least 1"),
        ({"samples": 2, "temperature": 1.0, "pass_at": 3}, "it lies between 1 and samples=2"),
        ({"samples": 4}, "takes 4 greedy samples of a prompt"),
    ],
)
def test_options_out_of_range_are_reported(options: dict[str, float], said: str) -> None:
    from rlinf_graph.dsl.node import definitions

    @rl.pipeline
    def checks() -> None:
        rl.evaluate(POLICY, rl.dataset("org/data"), is_right, **options)  # type: ignore[arg-type]  free

    graph = checks.build()
    check = definitions["evaluate"].check
    assert check is not None
    (found,) = check(graph.node("evaluate POLICY"), graph)
    assert found.code == "RG0104"
    assert said.replace("policy", "POLICY") in found.message
