"""Pipelines become graphs: the ones in the design document, and a supervised one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlinf_graph import rl
from rlinf_graph.dsl.node import node_types
from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.graph_file import digest, dumps, loads
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.verify import verify

policy = rl.Model("Qwen/Qwen2.5-7B-Instruct")
reference = policy.frozen()
critic = rl.Model("Qwen/Qwen2.5-1.5B", name="critic", head="value")
judge = rl.Model("Skywork/Skywork-Reward-V2-Llama-3.1-8B", head="score")


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def grpo(samples: int = 8, max_staleness: int = 1) -> None:
    prompts = rl.dataset("openai/gsm8k", batch=512)
    rollouts = rl.rollout(policy, prompts, samples=samples, max_tokens=8192)
    rewards = rl.verify(rollouts, is_correct)
    ref_logprobs = rl.logprobs(reference, rollouts)
    advantages = rl.group_advantages(rewards)
    weights = rl.train(
        policy,
        rollouts,
        advantages,
        reference=ref_logprobs,
        loss=rl.GRPOLoss(kl=1e-3),
        minibatch=1024,
        optimizer=rl.AdamW(lr=1e-6),
    )
    rl.sync(weights, into=policy, max_staleness=max_staleness)
    rl.evaluate(policy, rl.dataset("openai/gsm8k", split="test"), is_correct, every=20)


@rl.pipeline
def ppo() -> None:
    prompts = rl.dataset("openai/gsm8k", batch=512)
    rollouts = rl.rollout(policy, prompts)
    scores = rl.score(judge, rollouts)
    rewards = rl.kl_penalty(scores, rollouts, rl.logprobs(reference, rollouts), beta=0.05)
    values = rl.values(critic, rollouts)
    advantages, returns = rl.gae(rewards, values, trace=0.95)
    policy_weights = rl.train(policy, rollouts, advantages, loss=rl.PPOLoss(), epochs=4)
    rl.sync(policy_weights, into=policy)
    rl.sync(
        rl.train(critic, rollouts, returns, old_values=values, loss=rl.ValueLoss()), into=critic
    )


@rl.pipeline(pins={"train": "0-3"})
def supervised(rate: float = 1e-4) -> None:
    demonstrations = rl.examples("org/demonstrations", batch=64)
    rl.train(policy, demonstrations, loss=rl.SupervisedLoss(), optimizer=rl.AdamW(lr=rate))


def edges(graph: Graph) -> list[str]:
    return sorted(edge.name for edge in graph.edges)


def test_grpo_is_the_graph_of_the_design() -> None:
    graph = verify(grpo.build(), node_types())
    assert [node.name for node in graph.nodes] == [
        "dataset",
        "rollout policy",
        "verify",
        "logprobs reference",
        "group_advantages",
        "train policy",
        "sync policy",
        "dataset 2",
        "evaluate policy",
    ]
    assert edges(graph) == [
        "dataset -> rollout policy.prompts",
        "dataset 2 -> evaluate policy.prompts",
        "group_advantages -> train policy.targets",
        "logprobs reference -> train policy.reference",
        "rollout policy -> logprobs reference.rollouts",
        "rollout policy -> train policy.samples",
        "rollout policy -> verify.rollouts",
        "train policy -> sync policy.weights",
        "verify -> group_advantages.rewards",
    ]
    assert [(m.name, m.path, m.head) for m in graph.models] == [
        ("policy", "Qwen/Qwen2.5-7B-Instruct", "lm")
    ]
    assert graph.node("rollout policy").option("samples") == 8
    assert graph.node("sync policy").option("max_staleness") == 1
    assert graph.node("evaluate policy").role is Role.EVALUATE
    units = {node.name: node.unit.value for node in graph.nodes}
    assert units["verify"] == "sample"
    assert units["group_advantages"] == "group"
    assert units["train policy"] == "batch"


def test_ppo_has_two_trainers_and_two_outputs_of_gae() -> None:
    graph = verify(ppo.build(), node_types())
    assert sorted(graph.trainers()) == ["critic", "policy"]
    assert sorted(graph.syncs()) == ["critic", "policy"]
    assert graph.node("gae").outputs == ("TokenAdvantages", "Returns")
    assert [e.source for e in graph.out_of("gae")] == [Source("gae"), Source("gae", 1)]
    assert "values critic -> train critic.old_values" in edges(graph)
    assert {m.name: m.head for m in graph.models} == {
        "policy": "lm",
        "judge": "score",
        "critic": "value",
    }


def test_a_supervised_pipeline_needs_no_rollout() -> None:
    graph = verify(supervised.build(rate="0.5"), node_types())
    assert edges(graph) == ["examples -> train policy.samples"]
    assert graph.parameters == (("rate", 0.5),)
    assert graph.pins == (("train", "0-3"),)


def test_every_node_knows_where_it_was_written() -> None:
    for node in grpo.build().nodes:
        assert node.span is not None
        assert Path(node.span.file) == Path(__file__)
        written = node.span.source[node.span.column - 1 :]
        kind = "logprobs" if node.type == "reference_logprobs" else node.type
        assert written.startswith(f"rl.{kind}(")
    verified = grpo.build().node("verify").span
    assert verified is not None
    assert verified.source[verified.column - 1 : verified.end_column - 1] == (
        "rl.verify(rollouts, is_correct)"
    )
    inner = grpo.build().node("dataset 2").span
    assert inner is not None
    assert inner.source[inner.column - 1 : inner.end_column - 1] == (
        'rl.dataset("openai/gsm8k", split="test")'
    )


@pytest.mark.parametrize("declared", [grpo, ppo, supervised], ids=lambda p: p.name)
def test_graphs_survive_json(declared: rl.Pipeline) -> None:
    graph = declared.build()
    again = loads(dumps(graph))
    assert again == graph
    assert digest(again) == digest(graph)
    assert verify(again, node_types()) is again


def test_the_digest_follows_the_meaning() -> None:
    assert digest(grpo.build()) == digest(grpo.build())
    assert digest(grpo.build()) != digest(grpo.build(samples=4))
    assert digest(grpo.build()) != digest(ppo.build())


def test_building_loads_no_data_and_no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlinf_graph.nodes import rows

    monkeypatch.setattr(rows, "read", lambda *_: pytest.fail("data was read"))
    grpo.build()
    ppo.build()
