"""Corrections: how they are fitted, where they apply, and when a profile is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost import profile as profiles
from rlinf_graph.compiler.cost.fit import estimate_of, fit_all, fit_line, spread
from rlinf_graph.compiler.cost.profile import Correction, Machine, Profile, Subject, versions_here
from rlinf_graph.compiler.explain import explain
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.graph_file import digest
from rlinf_graph.ir.measurement import Kind, Measurement, quantiles
from rlinf_graph.ir.plan import NodePlan

PIPELINE = Path(__file__).parents[2] / "plans" / "pipeline.py"
OVERHEAD, FACTOR = 0.02, 3.0
positive = st.floats(min_value=1e-4, max_value=1e2)


@pytest.fixture
def graph() -> Graph:
    return run_passes(load_pipeline(str(PIPELINE))[0].build())


@pytest.fixture
def cluster() -> Cluster:
    return load_cluster("2xcpu")


def measured(costs: CostModel, node: str, kind: Kind, samples: int) -> Measurement:
    """A measurement that lies on the line of `OVERHEAD` and `FACTOR`."""
    lengths = () if kind in ("host", "optimizer_step", "sync") else (4.0, 6.0, 9.0)
    made = Measurement(
        node=node, kind=kind, samples=samples, prompt_tokens=5, lengths=lengths, seconds=(1,)
    )
    seconds = OVERHEAD + FACTOR * estimate_of(costs, made)
    return made.model_copy(update={"seconds": (seconds / 2, seconds, 10 * seconds)})


def profile_of(graph: Graph, cluster: Cluster, corrections: tuple[Correction, ...]) -> Profile:
    return Profile(
        pipeline=graph.name,
        graph=digest(graph),
        date="2026-01-01T00:00:00+00:00",
        machine=Machine.of(cluster.groups[0]),
        versions=versions_here(),
        corrections=corrections,
        file="profile.json",
    )


@pytest.fixture
def profile(graph: Graph, cluster: Cluster) -> Profile:
    costs = CostModel(graph, cluster)
    nodes: tuple[tuple[str, Kind], ...] = (
        ("rollout policy", "chunk"),
        ("logprobs reference", "chunk"),
        ("verify", "host"),
        ("train policy", "accumulate"),
        ("train policy", "optimizer_step"),
        ("sync policy", "sync"),
    )
    found = [measured(costs, node, kind, n) for node, kind in nodes for n in (2, 8, 32)]
    return profile_of(graph, cluster, tuple(fit.correction for fit in fit_all(costs, found)))


@given(positive, positive, st.lists(positive, min_size=2, max_size=6, unique=True))
def test_the_fit_finds_the_line_that_the_times_lie_on(
    overhead: float, factor: float, estimates: list[float]
) -> None:
    seconds = [overhead + factor * estimate for estimate in estimates]
    found = fit_line(estimates, seconds)
    for estimate, second in zip(estimates, seconds, strict=True):
        assert found[0] + found[1] * estimate == pytest.approx(second, rel=0.02)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=6))
def test_no_term_of_a_fit_is_negative(pairs: list[tuple[float, float]]) -> None:
    estimates, seconds = zip(*pairs, strict=True)
    assert min(fit_line(estimates, seconds)) >= 0


def test_one_size_is_scaled_and_no_estimate_is_overhead() -> None:
    assert fit_line([0.5, 0.5], [1.0, 1.0]) == pytest.approx((0.0, 2.0))
    assert fit_line([0.0], [3.0]) == pytest.approx((3.0, 0.0))


def test_less_work_for_more_time_is_not_believed() -> None:
    overhead, factor = fit_line([1.0, 2.0], [2.0, 1.0])
    assert (overhead > 0, factor) == (True, 0.0)


def test_quantiles_end_with_the_longest() -> None:
    assert quantiles([3, 1, 2]) == (1.0, 2.0, 3.0)
    assert len(quantiles(range(1000))) == 32
    assert quantiles(range(1000))[-1] == 999.0
    assert quantiles([]) == ()


def test_corrections_are_those_that_the_measurements_lie_on(profile: Profile) -> None:
    sized = [c for c in profile.corrections if c.kind in ("chunk", "accumulate", "host")]
    assert len(sized) == 4
    for correction in sized:
        assert correction.factor == pytest.approx(FACTOR, rel=1e-6)
        assert correction.overhead_s == pytest.approx(OVERHEAD, rel=1e-6)
        assert correction.residual == pytest.approx(0, abs=1e-9)


def test_corrections_apply_to_every_instruction(
    graph: Graph, cluster: Cluster, profile: Profile
) -> None:
    plain, corrected = CostModel(graph, cluster), CostModel(graph, cluster, profile)
    chunks = NodePlan(chunks=4)
    rollout, train = graph.node("rollout policy"), graph.node("train policy")
    before = plain.chunk_seconds(rollout, (1,), chunks)
    after = corrected.chunk_seconds(rollout, (1,), chunks)
    assert after == pytest.approx(OVERHEAD + FACTOR * before)
    settings = NodePlan(micro_batch=4)
    call = plain.accumulate_seconds(train, (0,), settings, 4)
    corrected_call = corrected.accumulate_seconds(train, (0,), settings, 4)
    assert corrected_call == pytest.approx(OVERHEAD + FACTOR * call)
    step = corrected.optimizer_step_seconds(train, (0,), settings)
    whole = corrected.node(train, (0,), settings)
    assert whole.seconds == pytest.approx(2 * (4 * corrected_call + step))
    assert sum(value for _, value in whole.parts) == pytest.approx(whole.seconds)


def test_of_ranks_that_wait_for_one_another_the_slowest_counts() -> None:
    draws = np.random.Generator(np.random.Philox(key=7)).normal(0.0, 0.2, (20_000, 4))
    seconds = tuple(np.exp(draws[:, 0]).tolist())
    measured_ = Measurement(node="n", kind="chunk", samples=1, seconds=seconds)
    assert spread([measured_]) == pytest.approx(0.2, rel=0.05)
    made = Correction(
        subject=Subject("rollout"), kind="chunk", overhead_s=1.0, factor=2.0, spread=0.2
    )
    assert made.slowest(1) == 1.0
    assert made.slowest(4) == pytest.approx(np.median(np.exp(draws.max(axis=1))), rel=0.02)
    alone, together = (made.parts({"decode": 3.0, "all-reduce": 9.0}, ranks) for ranks in (1, 4))
    work = 1.0 + 2.0 * 3.0
    assert sum(alone.values()) == pytest.approx(work + 9.0)
    assert sum(together.values()) == pytest.approx(work * made.slowest(4) + 9.0)


def test_what_was_measured_says_so(graph: Graph, cluster: Cluster, profile: Profile) -> None:
    costs = CostModel(graph, cluster, profile)
    settings, group = NodePlan(micro_batch=4), cluster.groups[0]
    names = ("rollout policy", "logprobs reference", "train policy")
    assert {costs.node(graph.node(n), (0,), settings).origin for n in names} == {"profiled"}
    assert costs.host(graph.node("verify"), 2, group).origin == "profiled"
    assert costs.host(graph.node("group_advantages"), 2, group).origin != "profiled"
    assert costs.sync("policy", (0,), (0,), "copy").origin == "profiled"
    assert costs.sync("policy", (0,), (1,), "broadcast").origin == "roofline"


def test_a_profile_holds_at_other_sizes_and_not_for_other_models(
    graph: Graph, cluster: Cluster, profile: Profile
) -> None:
    larger = run_passes(load_pipeline(str(PIPELINE))[0].build(epochs=2))
    settings = NodePlan(micro_batch=4)
    costs = CostModel(larger, cluster, profile)
    assert costs.node(larger.node("train policy"), (0,), settings).origin == "profiled"
    double = tuple(replace(model, dtype="float32") for model in graph.models)
    other = CostModel(replace(graph, models=double), cluster, profile)
    assert other.node(graph.node("train policy"), (0,), settings).origin == "roofline"


def test_a_plan_names_its_profile(cluster: Cluster, profile: Profile) -> None:
    pipeline, _ = load_pipeline(str(PIPELINE))
    without = compile_pipeline(pipeline, cluster)
    compiled = compile_pipeline(pipeline, cluster, profile=profile)
    assert without.plan.estimate is not None
    assert compiled.plan.estimate is not None
    assert without.plan.estimate.profile is None
    assert compiled.plan.estimate.profile == "profile.json"
    assert compiled.plan.estimate.iteration_s > without.plan.estimate.iteration_s
    given_plan = compile_pipeline(pipeline, cluster, plan=compiled.plan, profile=profile)
    assert explain(given_plan).seconds == pytest.approx(
        compiled.plan.estimate.iteration_s, rel=0.01
    )


def test_a_written_profile_reads_the_same(profile: Profile) -> None:
    assert profiles.loads(profiles.dumps(profile), "profile.json") == profile


def refused(profile: Profile, cluster: Cluster, **parameters: Any) -> str:
    pipeline, _ = load_pipeline(str(PIPELINE))
    with pytest.raises(CompileError) as raised:
        compile_pipeline(pipeline, cluster, profile=profile, parameters=parameters)
    (found,) = raised.value.diagnostics
    assert found.code == "RG0408"
    assert "rlinf-graph profile" in found.help[0]
    return str(raised.value)


def test_other_hardware_is_refused_with_both_values(profile: Profile) -> None:
    text = refused(profile, load_cluster("8xH100"))
    assert "device: cpu-core in the profile, H100" in text
    machine = profile.machine.model_copy(update={"processor": "Z80", "cpus": 1})
    text = refused(profile.model_copy(update={"machine": machine}), load_cluster("2xcpu"))
    assert "processor: Z80 in the profile, " in text
    assert "cpus: 1 in the profile, 2 here" in text


def test_other_versions_are_refused_with_both_values(cluster: Cluster, profile: Profile) -> None:
    versions = {**profile.versions, "torch": "1.0"}
    text = refused(profile.model_copy(update={"versions": versions}), cluster)
    assert f"torch: 1.0 in the profile, {profile.versions['torch']} here" in text


def test_a_profile_of_other_nodes_is_refused(cluster: Cluster, profile: Profile) -> None:
    text = refused(profile.model_copy(update={"corrections": ()}), cluster)
    assert "has measured none of the nodes of `small_grpo`" in text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}'])
def test_a_file_that_is_no_profile(text: str) -> None:
    with pytest.raises(CompileError, match="is no profile") as raised:
        profiles.loads(text, "profile.json")
    assert raised.value.diagnostics[0].code == "RG0408"
