"""Rewards by function and by model, and the KL penalty."""

from __future__ import annotations

import linecache
from typing import Any

import numpy as np
import pytest
import torch

from rlinf_graph import rl
from rlinf_graph.dsl.node import definitions
from rlinf_graph.ir.value import FunctionRef
from rlinf_graph.nodes.execution import Execution
from tests.nodes.conftest import TableEngine, make_rollouts


def is_right(answer: str, truth: str, bonus: float = 0.0) -> float:
    return float(answer == truth) + bonus


def divides(answer: str, **columns: Any) -> float:
    return 1.0 / len(columns["missing"])


def test_verify_gives_each_answer_its_columns(running: Execution) -> None:
    rollouts = make_rollouts(["yes", "no", "yes"], columns=[{"truth": "yes", "bonus": 0.5}] * 3)
    made = rl.verify(rollouts, is_right)
    assert made.values.tolist() == [1.5, 0.5, 1.5]
    assert made.values.dtype == rollouts.logprobs.dtype
    assert running.metrics.values()["reward/mean"] == pytest.approx(3.5 / 3)


def test_a_verifier_may_take_the_prompt_everything_or_the_answer_alone() -> None:
    rollouts = make_rollouts(["yes", "no"])
    asked = rl.verify(rollouts, lambda answer, prompt: prompt == "question 1")
    assert asked.values.tolist() == [0, 1]
    everything = rl.verify(rollouts, lambda answer, **known: len(known))
    assert everything.values.tolist() == [2, 2]
    assert rl.verify(rollouts, len).values.tolist() == [3, 2]
    assert rl.verify(rollouts, FunctionRef.of(is_right)).values.tolist() == [1, 0]
    assert rl.verify(rollouts, lambda answer, truth: np.bool_(answer == truth)).values[0] == 1


def test_a_parameter_that_is_no_column_is_named() -> None:
    def graded(answer: str, thruth: str) -> float:
        return 0.0

    with pytest.raises(rl.CompileError) as caught:
        rl.verify(make_rollouts(["yes"]), graded)
    text = str(caught.value)
    assert "RG0506" in text
    assert "`graded` takes `thruth`" in text
    assert "columns: prompt, truth" in text
    assert "did you mean `truth`?" in text


def test_an_error_in_the_function_names_the_sample_and_the_line() -> None:
    with pytest.raises(rl.CompileError) as caught:
        rl.verify(make_rollouts(["no idea"]), divides)
    assert isinstance(caught.value.__cause__, KeyError)
    (found,) = caught.value.diagnostics
    assert found.code == "RG0507"
    assert found.message == "`divides` failed on sample 0: KeyError: 'missing'"
    assert found.notes == ("prompt: 'question 0'", "answer: 'no idea'")
    assert found.span is not None
    assert found.span.source == '    return 1.0 / len(columns["missing"])'
    assert found.span.source[found.span.column - 1 :].startswith('columns["missing"]')


def test_an_error_below_the_function_is_reported_at_its_own_line() -> None:
    def parses(answer: str) -> float:
        return float(torch.tensor([1.0]).reshape(3, 3).sum())

    with pytest.raises(rl.CompileError) as caught:
        rl.verify(make_rollouts(["x"]), parses)
    span = caught.value.diagnostics[0].span
    assert span is not None
    assert "reshape" in linecache.getline(span.file, span.line)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", torch.tensor(1.0)])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    def strange(answer: str) -> Any:
        return value

    with pytest.raises(rl.CompileError, match="RG0507") as caught:
        rl.verify(make_rollouts(["yes"]), strange)
    assert "`strange` returned" in str(caught.value)


def test_score_reads_text(running: Execution) -> None:
    running.engines["judge"] = TableEngine({})  # type: ignore[assignment]  a part of an engine
    judge = rl.Model("judge", head="score")
    rollouts = make_rollouts(["four", "sixsix"])
    assert rl.score(judge, rollouts).values.tolist() == [4.0, 6.0]


def test_kl_penalty_lies_on_own_tokens_and_the_reward_on_the_last() -> None:
    masks = [[0, 1, 1], [0, 0, 1, 0], [0, 0]]
    rollouts = make_rollouts(["a", "b", ""], masks=masks)
    reference = rl.ReferenceLogprobs(
        index=rollouts.index,
        group=rollouts.group,
        lengths=rollouts.lengths,
        values=torch.linspace(-2, -1, 9, dtype=torch.float64),
    )
    given = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    rewards = rl.Rewards(index=rollouts.index, group=rollouts.group, values=given)
    made = rl.kl_penalty(rewards, rollouts, reference, beta=0.5)
    wanted = [
        -0.5 * (float(rollouts.logprobs[t]) - float(reference.values[t])) * bool(rollouts.mask[t])
        for t in range(9)
    ]
    wanted[2] += 1.0
    wanted[5] += 2.0
    assert made.values.tolist() == pytest.approx(wanted, abs=1e-12)
    assert made.terminated.tolist() == [True, True, True]


def test_the_cost_of_a_verifier_says_whether_it_was_declared() -> None:
    work = definitions["verify"].work
    assert work is not None
    volume = {"rollouts": rl.Volume(10, rl.Lengths.fixed(5, "declared"))}
    assert work(rl.Call(volume, {"seconds": None})) == rl.HostWork(10, 20e-6, "declared default")
    assert work(rl.Call(volume, {"seconds": 0.5})) == rl.HostWork(10, 0.5, "declared")
