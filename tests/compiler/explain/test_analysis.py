"""What a reader sees of a run. The events are simulated, slower here and there than estimated."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest

from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.explain import analyze, render_analysis, render_json
from rlinf_graph.compiler.explain.causes import Causes
from rlinf_graph.compiler.lower import cadence
from rlinf_graph.compiler.simulate import SimulatedMachine
from rlinf_graph.ir.interpreter import Interpreter
from rlinf_graph.ir.plan import Leaf, NodePlan, Parallel, PipelineRef, Plan, Split, SyncPlan, Turn
from rlinf_graph.ir.position import Position
from rlinf_graph.ir.timeline import Event
from tests.compiler.explain.conftest import WIDTHS

Slower = Callable[[str, Position], float]
ITERATIONS = 8


class _Skewed(SimulatedMachine):
    """The cost model times a factor for each instruction; evaluation takes all of its time."""

    slower: Slower

    def perform(self, group, instruction, at):
        spread_over = cadence(self.graph, self.graph.node(group.name))
        seconds = super().perform(group, instruction, at) * spread_over
        return seconds * _Skewed.slower(group.name, at)


def events_of(compiled: Compiled, slower: Slower, iterations: int = ITERATIONS) -> list[Event]:
    _Skewed.slower = staticmethod(slower)
    machine = _Skewed(compiled.graph, compiled.plan, compiled.cluster, compiled.costs)
    return Interpreter(compiled.program, machine).run(iterations)


def plan_of(graph, staleness: int, rollout: int = 4, train: int = 4) -> Plan:
    first, second = tuple(range(rollout)), tuple(range(rollout, rollout + train))
    return Plan(
        pipeline=PipelineRef(file="grpo.py", name="grpo"),
        mode="disaggregated",
        placement=Split(
            parts=(
                Turn(
                    parts=(
                        Leaf(node="rollout policy", devices=first),
                        Leaf(node="evaluate policy", devices=first),
                    )
                ),
                Turn(
                    parts=(
                        Leaf(node="logprobs reference", devices=second),
                        Leaf(node="train policy", devices=second),
                    )
                ),
            )
        ),
        nodes={
            "rollout policy": NodePlan(parallel=Parallel(dp=rollout // 2, tp=2), chunks=4),
            "evaluate policy": NodePlan(parallel=Parallel(dp=rollout)),
            "logprobs reference": NodePlan(parallel=Parallel(dp=train), chunks=4),
            "train policy": NodePlan(parallel=Parallel(dp=train, shard="fsdp"), micro_batch=64),
        },
        host={"dataset": 1, "verify": 8, "group_advantages": 1, "dataset 2": 1},
        syncs={
            next(iter(graph.syncs().values())).name: SyncPlan(
                method="broadcast", staleness=staleness
            )
        },
    )


@pytest.fixture
def compiled(bench, build_grpo, grpo_figures, make_cluster) -> Compiled:
    graph = build_grpo()
    return bench.compiled(graph, make_cluster(8), grpo_figures, plan=plan_of(graph, staleness=1))


def as_estimated(_name: str, _at: Position) -> float:
    return 1.0


def troubled(name: str, at: Position) -> float:
    """The first iteration warms up, rank 2 trains slowly, one rollout takes long."""
    warm = 3.0 if at.iteration == 0 else 1.0
    if name == "train policy":
        return warm * (1.5 if at.rank == 2 else 1.1)
    if name == "rollout policy":
        return warm * (2.5 if at.iteration == 5 else 1.2)
    return warm


def sampled(lag: int, count: int = 4096) -> list[dict[str, object]]:
    return [
        {"node": "rollout policy", "iteration": i, "version": max(0, i - lag)}
        for i in range(ITERATIONS)
        for _ in range(count)
    ]


def test_a_run_that_is_slower_than_estimated(compiled, snapshot):
    events = events_of(compiled, troubled)
    report = analyze(compiled, events, ITERATIONS, samples=sampled(1))
    assert render_analysis(report) == snapshot
    assert render_json(report) == snapshot(name="json")


def test_on_policy_devices_wait_for_each_other(
    bench, build_grpo, grpo_figures, make_cluster, snapshot
):
    graph = build_grpo(max_staleness=0)
    plan = plan_of(graph, staleness=0)
    ready = bench.compiled(graph, make_cluster(8), grpo_figures, plan=plan)
    report = analyze(ready, events_of(ready, as_estimated), ITERATIONS, clock="own")
    assert render_analysis(report) == snapshot


def test_one_iteration_is_all_there_is(compiled, snapshot):
    events = events_of(compiled, as_estimated, iterations=1)
    assert render_analysis(analyze(compiled, events, 1)) == snapshot


def test_a_run_as_estimated_says_so(compiled):
    report = analyze(compiled, events_of(compiled, as_estimated), ITERATIONS)
    assert report.run.ratio == pytest.approx(1, abs=0.02)
    for row in report.rows:
        if row.measured is not None and row.every == 1 and row.estimate.busy_s:
            assert row.measured.ratio == pytest.approx(1, abs=0.06), row.name


def test_busy_and_idle_seconds_add_up_to_the_iteration(compiled):
    report = analyze(compiled, events_of(compiled, troubled), ITERATIONS)
    for lane in report.run.lanes:
        busy = sum(part.measured_s for part in lane.parts)
        assert busy + lane.idle_s == pytest.approx(lane.seconds)


def test_samples_beyond_the_bound_are_counted(compiled):
    report = analyze(
        compiled, events_of(compiled, as_estimated), ITERATIONS, samples=sampled(2, count=10)
    )
    assert "60 older than the limit of 1" in render_analysis(report)


def test_no_cause_ends_after_the_event_that_waited_for_it(compiled):
    events = events_of(compiled, troubled)
    causes = Causes(compiled.program, events)
    found = [(event, cause) for event in events if (cause := causes.of(event)) is not None]
    assert len(found) > 0.9 * len(events)
    assert all(cause.event.end <= event.start + 1e-9 for event, cause in found)


def test_every_wait_of_a_simulated_run_is_told_exactly(compiled):
    """Its clocks only move for work and for waiting, so the cause ends when the event begins."""
    events = events_of(compiled, troubled)
    causes = Causes(compiled.program, events)
    before: dict[tuple[str, int], float] = defaultdict(float)
    for event in sorted(events, key=lambda e: (e.start, e.end)):
        key = event.group, event.at.rank
        if event.start > before[key] + 1e-9:
            cause = causes.of(event)
            assert cause is not None
            assert cause.event.end == pytest.approx(event.start)
        before[key] = event.end


def test_waits_are_put_down_to_who_was_slow(compiled):
    def slow_verify(name: str, _at: Position) -> float:
        return 1000.0 if name == "verify" else 1.0

    report = analyze(compiled, events_of(compiled, slow_verify), ITERATIONS)
    trainers = next(lane for lane in report.run.lanes if lane.where == "gpu 4-7")
    assert (trainers.waits[0].kind, trainers.waits[0].node) == ("samples", "verify")


def test_a_gap_that_no_input_explains_is_a_hand_over(compiled):
    """As on machines where data and turns take their time between events."""
    stretched = [
        replace(e, start=e.start * 2, end=e.start * 2 + e.seconds)
        for e in events_of(compiled, as_estimated)
    ]
    report = analyze(compiled, stretched, ITERATIONS)
    kinds = {wait.kind for lane in report.run.lanes for wait in lane.waits}
    assert "handover" in kinds
    assert all(lane.idle_s > 0.3 * lane.seconds for lane in report.run.lanes)


def test_json_has_the_measured_beside_the_estimated(compiled):
    report = analyze(compiled, events_of(compiled, troubled), ITERATIONS)
    data = json.loads(render_json(report))
    train = next(row for row in data["rows"] if row["name"] == "train policy")
    assert train["measured"]["slowest"]["rank"] == 2
    assert train["measured"]["ratio"] == pytest.approx(1.2)
    assert data["run"]["period"]["median"] > data["seconds"]


@pytest.mark.parametrize(("passes", "outside"), [(0.15, {"train policy"}), (0.2, set())])
def test_what_lies_outside_its_interval_is_marked(
    bench, build_grpo, grpo_figures, make_cluster, passes, outside
):
    """Training takes 1.2 times the estimate, and so does the rollout."""
    graph, widths = build_grpo(), replace(WIDTHS, passes=passes)
    plan = plan_of(graph, staleness=1)
    ready = bench.compiled(graph, make_cluster(8), grpo_figures, plan=plan, widths=widths)
    report = analyze(ready, events_of(ready, troubled), ITERATIONS)
    assert {r.name for r in report.rows if r.measured and r.measured.inside is False} == outside | {
        "evaluate policy"  # it only ran in the first iteration
    }
    assert report.run.inside == (
        report.interval[0] <= report.run.period.median <= report.interval[1]
    )
    text = render_analysis(report)
    assert ("1.20!" in text, "!: off by more than ±" in text) == (bool(outside), bool(outside))
    assert "within its 80% interval" in text


@pytest.mark.parametrize("width", [100, 140])
def test_lines_keep_to_the_width(compiled, width):
    report = analyze(compiled, events_of(compiled, troubled), ITERATIONS, samples=sampled(1))
    assert max(map(len, render_analysis(report, width=width).splitlines())) <= width
