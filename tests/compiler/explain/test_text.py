"""What a reader sees, for pipelines with costs in round numbers."""

import re
from dataclasses import replace

import pytest

from rlinf_graph.compiler.explain import explain, render_json, render_text
from rlinf_graph.ir.plan import Leaf, NodePlan, Parallel, PipelineRef, Plan, Split, SyncPlan, Turn


def side_by_side(rollout=8, train=8, micro=1):
    """Rollout on the first devices; reference and training in turns on the others."""
    first, second = tuple(range(rollout)), tuple(range(rollout, rollout + train))
    trainers = Turn(
        parts=(
            Leaf(node="logprobs reference", devices=second),
            Leaf(node="train policy", devices=second),
        )
    )
    samplers = Turn(
        parts=(
            Leaf(node="rollout policy", devices=first),
            Leaf(node="evaluate policy", devices=first),
        )
    )
    return Plan(
        pipeline=PipelineRef(file="grpo.py", name="grpo"),
        mode="disaggregated",
        placement=Split(parts=(samplers, trainers)),
        nodes={
            "rollout policy": NodePlan(parallel=Parallel(dp=rollout // 2, tp=2), chunks=8),
            "evaluate policy": NodePlan(parallel=Parallel(dp=rollout)),
            "logprobs reference": NodePlan(parallel=Parallel(dp=train), chunks=8),
            "train policy": NodePlan(
                parallel=Parallel(dp=train, shard="fsdp"), micro_batch=micro, recompute=True
            ),
        },
        host={"dataset": 1, "verify": 8, "group_advantages": 1, "dataset 2": 1},
        syncs={"sync policy": SyncPlan(method="broadcast", staleness=1)},
    )


def sync_name(graph):
    return next(iter(graph.syncs().values())).name


def given_plan(graph, **options):
    plan = side_by_side(**options)
    syncs = {sync_name(graph): plan.syncs["sync policy"]}
    return plan.model_copy(update={"syncs": syncs})


def test_grpo_on_sixteen_devices(bench, build_grpo, grpo_figures, make_cluster, snapshot):
    report = bench.report(build_grpo(), make_cluster(16), grpo_figures)
    assert render_text(report) == snapshot


def test_each_limit_of_staleness(found_report, snapshot):
    assert render_text(found_report) == snapshot


def test_on_policy_waits_for_latency(bench, build_grpo, grpo_figures, make_cluster, snapshot):
    graph = build_grpo(max_staleness=0)
    compiled = bench.compiled(graph, make_cluster(16), grpo_figures, plan=given_plan(graph))
    syncs = {sync_name(graph): SyncPlan(method="broadcast", staleness=0)}
    plan = compiled.plan.model_copy(update={"syncs": syncs})
    report = explain(replace(compiled, plan=plan))
    assert report.bottleneck.kind == "latency"
    assert render_text(report) == snapshot


def test_a_plan_that_was_given(bench, build_grpo, grpo_figures, make_cluster, snapshot):
    graph = build_grpo()
    report = bench.report(graph, make_cluster(16), grpo_figures, plan=given_plan(graph))
    assert render_text(report) == snapshot
    assert render_json(report) == snapshot(name="json")


def test_a_given_plan_that_does_not_fit(bench, build_grpo, grpo_figures, make_cluster):
    graph = build_grpo()
    grpo_figures["train policy"] = replace(grpo_figures["train policy"], works=70)
    report = bench.report(graph, make_cluster(16), grpo_figures, plan=given_plan(graph))
    assert "warning     gpu 8-15 needs 100 GB, 78 of 80 usable" in render_text(report)


def test_two_trained_models(bench, build_ppo, ppo_figures, make_cluster, snapshot):
    report = bench.report(build_ppo(), make_cluster(4), ppo_figures)
    assert render_text(report) == snapshot


def test_milliseconds_on_processors(bench, build_grpo, grpo_figures, make_cluster, snapshot):
    tiny = {
        name: replace(f, seconds=f.seconds / 4e4, keeps=f.keeps / 200, works=f.works / 200)
        for name, f in grpo_figures.items()
    }
    graph = build_grpo(verifying=1e-5)
    report = bench.report(graph, make_cluster(2, kind="cpu"), tiny, scale=1e-4)
    assert render_text(report) == snapshot


def test_a_slow_host_node_is_the_bottleneck(bench, build_grpo, grpo_figures, make_cluster):
    graph = build_grpo(verifying=1.0)
    report = bench.report(graph, make_cluster(16), grpo_figures, plan=given_plan(graph))
    text = render_text(report)
    assert report.bottleneck.kind == "host"
    assert "bottleneck  verify on cpu: 512.0 s" in text
    assert "(<1%" in text  # the other host nodes are still folded


@pytest.mark.parametrize("width", [90, 100, 140])
def test_lines_keep_to_the_width(found_report, width):
    lines = render_text(found_report, width=width).splitlines()
    head = next(i for i, line in enumerate(lines) if line.endswith("cost from"))
    table = lines[head : head + 1 + len(found_report.rows)]
    assert max(len(line) for line in lines if width >= 100 or line not in table) <= width


def test_color_changes_nothing_but_color(found_report):
    colored = render_text(found_report, color=True)
    assert colored != render_text(found_report)
    assert re.sub(r"\x1b\[\d+m", "", colored) == render_text(found_report)
