"""Named served ports when compiling: what is refused, and what plans and explain say of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph import rl
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.compiler.explain import explain, render_text
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.ir import graph_file
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.program import Await, WorkerGroup

DECODER = str(Path(__file__).parents[1] / "plans" / "decoder")
DATA = str(Path(__file__).parents[2] / "demo" / "arithmetic" / "train.jsonl")
policy = rl.Model(DECODER, weights="random")
critic = rl.Model(DECODER, name="critic", weights="random", head="value")
average = policy.served("average", decay=0.995)


def right(answer: str, truth: str) -> float:
    return float(answer == truth)


def pipeline_of(
    read: Any, *deliveries: tuple[Any, dict[str, Any]], every: int = 1, staleness: int = 0
) -> rl.Pipeline:
    """GRPO with a reference, the policy's own sync, and more of them."""

    @rl.pipeline
    def followed() -> None:
        prompts = rl.dataset(DATA, batch=8)
        rollouts = rl.rollout(policy, prompts, samples=4, max_tokens=4, lengths=4)
        advantages = rl.group_advantages(rl.verify(rollouts, right))
        weights = rl.train(
            policy,
            rollouts,
            advantages,
            reference=rl.logprobs(read, rollouts),
            loss=rl.GRPOLoss(kl=0.01),
        )
        rl.sync(weights, into=policy, every=every, max_staleness=staleness)
        for port, options in deliveries:
            rl.sync(weights, into=port, **options)

    return followed


def refusals(build: Callable[[], Any]) -> list[Diagnostic]:
    with pytest.raises(CompileError) as caught:
        run_passes(build())
    return list(caught.value.diagnostics)


def test_a_port_that_nothing_is_delivered_to_is_refused() -> None:
    (found,) = refusals(pipeline_of(average).build)
    assert found.code == "RG0301"
    assert "port `average` of `policy`: `logprobs average`" in found.message
    assert "policy.frozen()" in found.help[0]


def test_a_port_is_delivered_to_once() -> None:
    twice = pipeline_of(average, (average, {}), (average, {"every": 2}))
    (found,) = refusals(twice.build)
    assert found.code == "RG0304"
    assert "the port `average` of `policy` is synced twice" in found.message


@pytest.mark.parametrize("decay", [1.0, -0.1, "much", float("nan")])
def test_a_decay_leaves_something_of_both(decay: Any) -> None:
    port = policy.served("average", decay=decay)
    (found,) = refusals(pipeline_of(port, (port, {})).build)
    assert found.code == "RG0104"
    assert "`decay` of the port `average`" in found.message


def test_rare_deliveries_of_a_named_port_need_no_staleness() -> None:
    port = policy.served("reference")
    run_passes(pipeline_of(port, (port, {"every": 50})).build())
    (found,) = refusals(pipeline_of(port, (port, {"every": 0})).build)
    assert (found.code, "`every` of `sync reference` is 0" in found.message) == ("RG0104", True)
    (found,) = refusals(pipeline_of(port, (port, {}), every=3).build)
    assert found.code == "RG0302"


def test_names_tell_ports_apart() -> None:
    other = policy.served("average", decay=0.9)
    (found,) = refusals(pipeline_of(average, (other, {})).build)
    assert (found.code, "of different decay" in found.message) == ("RG0106", True)
    same = policy.served("average", decay=0.995)
    run_passes(pipeline_of(average, (same, {})).build())
    taken = policy.served("policy")
    (found,) = refusals(pipeline_of(taken, (taken, {})).build)
    assert (found.code, "has the name of a model" in found.message) == ("RG0106", True)
    for name in ("", 3):
        with pytest.raises(CompileError, match="a served port's name is text"):
            policy.served(name)  # type: ignore[arg-type]  # what is refused


def test_weights_of_another_model_are_not_delivered() -> None:
    port = critic.served("slow")

    @rl.pipeline
    def crossed() -> None:
        rollouts = rl.rollout(policy, rl.dataset(DATA, batch=8), samples=4, max_tokens=4)
        advantages = rl.group_advantages(rl.verify(rollouts, right))
        weights = rl.train(policy, rollouts, advantages)
        rl.sync(weights, into=policy)
        rl.sync(weights, into=port)

    (found,) = refusals(crossed.build)
    assert (found.code, found.message) == (
        "RG0304",
        "weights of `policy` are synced into `critic`",
    )


def test_samples_are_not_drawn_from_a_named_port() -> None:
    @rl.pipeline
    def drawn() -> None:
        prompts = rl.dataset(DATA, batch=8)
        rl.rollout(average, prompts)  # type: ignore[arg-type]  # what is refused

    (found,) = refusals(drawn.build)
    assert found.code == "RG0105"
    assert "`policy` of `rollout` takes a model, and no named port of one" in found.message


def test_a_graph_with_named_ports_is_loaded_as_it_was_saved() -> None:
    graph = run_passes(pipeline_of(average, (average, {"every": 2})).build())
    loaded = graph_file.loads(graph_file.dumps(graph))
    assert loaded == graph
    assert graph_file.digest(loaded) == graph_file.digest(graph)
    other = policy.served("average", decay=0.9)
    changed = run_passes(pipeline_of(other, (other, {"every": 2})).build())
    assert graph_file.digest(changed) != graph_file.digest(graph)
    plain = json.loads(graph_file.dumps(pipeline_of(policy.frozen()).build()))
    assert {len(use) for node in plain["nodes"] for use in node["models"]} == {3}


def test_plans_deliver_to_each_port_and_explain_shows_it() -> None:
    pipeline = pipeline_of(average, (average, {"every": 20}), staleness=1)
    ready = compile_pipeline(pipeline, load_cluster("8xh100"))
    assert set(ready.plan.syncs) == {"sync policy", "sync average"}
    assert ready.plan.syncs["sync average"].staleness == 0
    groups = {group.name: group for group in ready.program.groups}
    awaited = _awaits(groups["logprobs average"])
    assert [(a.served, a.decay, a.every, a.staleness) for a in awaited] == [
        ("average", 0.995, 20, 0)
    ]
    assert [a.served for a in _awaits(groups["rollout policy"])] == [""]
    report = explain(ready)
    rows = {row.name: row.number for row in report.rows}
    feedback = {edge.model: edge for edge in report.feedback}
    assert feedback["average"].source == rows["sync → average"]
    assert feedback["average"].targets == (rows["logprobs average"],)
    assert feedback["policy"].targets == (rows["rollout policy"],)
    assert "sync → average" in render_text(report)


def test_a_plan_does_not_deliver_late_to_a_named_port() -> None:
    pipeline = pipeline_of(average, (average, {"every": 20}), staleness=1)
    cluster = load_cluster("8xh100")
    plan = compile_pipeline(pipeline, cluster).plan
    late = plan.syncs["sync average"].model_copy(update={"staleness": 1})
    edited = plan.model_copy(update={"syncs": {**plan.syncs, "sync average": late}})
    with pytest.raises(CompileError) as caught:
        compile_pipeline(pipeline, cluster, plan=edited)
    assert [d.code for d in caught.value.diagnostics] == ["RG0302"]


def _awaits(group: WorkerGroup) -> list[Await]:
    found: list[Await] = []

    def visit(body: tuple[Any, ...]) -> None:
        for instruction in body:
            if isinstance(instruction, Await):
                found.append(instruction)
            visit(getattr(instruction, "body", ()))

    visit(group.body)
    return found
