"""What passes find together, and that they change nothing twice."""

from __future__ import annotations

import pytest

from rlinf_graph import rl
from rlinf_graph.compiler.passes import PASSES, run_passes
from rlinf_graph.ir import graph_file
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph

policy = rl.Model("Qwen/Qwen2.5-1.5B-Instruct")
reference = policy.frozen()


def right(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def sound() -> None:
    prompts = rl.dataset("openai/gsm8k", batch=8)
    rollouts = rl.rollout(policy, prompts, samples=4)
    unread = rl.logprobs(reference, rollouts)
    advantages = rl.group_advantages(rl.verify(rollouts, right))
    weights = rl.train(policy, rollouts, advantages, reference=unread, loss=rl.GRPOLoss(kl=0.0))
    rl.sync(weights, into=policy)


@rl.pipeline
def unsound() -> None:
    prompts = rl.dataset("openai/gsm8k", batch=8)
    rollouts = rl.rollout(policy, prompts, samples=1)
    advantages = rl.group_advantages(rl.verify(rollouts, right))
    rl.train(policy, rollouts, advantages)
    rl.train(policy, rollouts, rl.verify(rollouts, right))  # the mistake


@rl.pipeline
def stale_and_uneven() -> None:
    prompts = rl.dataset("openai/gsm8k", batch=8)
    rollouts = rl.rollout(policy, prompts, samples=4)
    advantages = rl.group_advantages(rl.verify(rollouts, right))
    weights = rl.train(policy, rollouts, advantages, minibatch=5)
    rl.sync(weights, into=policy, max_staleness=None)


@rl.pipeline
def synced_twice() -> None:
    prompts = rl.dataset("openai/gsm8k", batch=8)
    rollouts = rl.rollout(policy, prompts, samples=4)
    weights = rl.train(policy, rollouts, rl.group_advantages(rl.verify(rollouts, right)))
    rl.sync(weights, into=policy)
    rl.sync(weights, into=policy, max_staleness=1)


def codes(pipeline: rl.Pipeline) -> list[str]:
    with pytest.raises(CompileError) as raised:
        run_passes(pipeline.build())
    return sorted(d.code for d in raised.value.diagnostics)


def test_errors_of_different_passes_come_together() -> None:
    assert codes(unsound) == ["RG0101", "RG0204", "RG0301", "RG0304"]
    assert codes(stale_and_uneven) == ["RG0302", "RG0403"]


def test_a_model_is_synced_once() -> None:
    assert codes(synced_twice) == ["RG0304"]


def test_what_no_loss_reads_is_pruned_with_its_producers() -> None:
    names = [node.name for node in run_passes(sound.build()).nodes]
    assert "logprobs reference" not in names
    assert "train policy" in names


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.__name__)
def test_every_pass_is_idempotent_and_leaves_the_graph_valid(step: object) -> None:
    whole = run_passes(sound.build())
    again = step(whole)  # type: ignore[operator]  # passes are functions
    assert isinstance(again, Graph)
    assert again == whole
    assert run_passes(again) == whole


def test_a_graph_is_loaded_as_it_was_saved() -> None:
    whole = run_passes(sound.build())
    loaded = graph_file.loads(graph_file.dumps(whole))
    assert loaded == whole
    assert graph_file.digest(loaded) == graph_file.digest(whole)
