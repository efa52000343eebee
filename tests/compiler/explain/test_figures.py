"""The figures of a report agree with each other, with the plan and with the cost model."""

import json

import pytest

from rlinf_graph.compiler.compile import accept_plan, compile_graph
from rlinf_graph.compiler.explain import explain, render_json, render_text
from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.cluster_file import load_cluster


@pytest.fixture
def report(found_report):
    return found_report


def row(report, name):
    return next(r for r in report.rows if r.name == name)


def test_the_window_is_one_average_iteration(report):
    assert report.window_s == pytest.approx(report.seconds)


def test_no_device_does_two_things_at_once(report):
    for lane in report.lanes:
        if lane.count:
            for before, after in zip(lane.segments, lane.segments[1:], strict=False):
                assert before.end_s <= after.start_s + 1e-9


def test_a_lane_holds_all_the_work_of_its_nodes(report):
    """Whatever iteration it belongs to: with staleness the window cuts through several."""
    for name in ("rollout policy", "train policy", "logprobs reference"):
        devices = row(report, name).count
        lanes = [x for x in report.lanes if name in dict(x.by_node())]
        drawn = sum(
            (s.end_s - s.start_s) * lane.count
            for lane in lanes
            for s in lane.segments
            if s.node == name and s.kind == "work"
        )
        assert drawn == pytest.approx(row(report, name).estimate.part("work") * devices)


def test_iterations_overlap_only_with_staleness(report):
    last = row(report, "train policy").estimate.last_s
    if report.bottleneck.staleness == 0:
        assert last <= report.seconds + 1e-9
    elif report.mode == "disaggregated":
        assert last > report.seconds


def test_busy_is_never_more_than_the_iteration(report):
    assert all(lane.busy_s <= report.window_s + 1e-9 for lane in report.lanes)


def test_a_found_plan_fits_in_memory(report):
    for lane in report.lanes:
        if lane.peak is not None:
            assert lane.peak <= lane.usable < lane.capacity
    assert "warning" not in render_text(report)


def test_evaluation_counts_with_its_share(report):
    evaluate, rollout = row(report, "evaluate policy"), row(report, "rollout policy")
    assert evaluate.every == 20
    assert evaluate.estimate.part("work") * 20 / 160 == pytest.approx(
        rollout.estimate.part("work") / 768
    )


def test_every_node_has_one_row_and_every_edge_is_told(report):
    numbers = [r.number for r in report.rows]
    assert numbers == list(range(1, len(numbers) + 1))
    told = {(r.number, r.parent) for r in report.rows if r.parent} | {
        (source, r.number) for r in report.rows for source in r.takes
    }
    verify, rollout = row(report, "verify").number, row(report, "rollout policy").number
    train = row(report, "train policy").number
    assert {(rollout, train), (rollout, verify)} <= told
    assert len(told) == 9


def test_json_reads_back_and_says_its_format(report):
    data = json.loads(render_json(report))
    assert data["format"] == 1
    assert data["seconds"] == pytest.approx(report.seconds)
    assert [r["name"] for r in data["rows"]] == [r.name for r in report.rows]


def test_the_real_cost_model_and_a_plan_written_and_read(build_grpo):
    graph, cluster = build_grpo(), load_cluster("16xH100")
    compiled = compile_graph(graph, cluster)
    report = explain(compiled)
    assert report.rejected
    again = explain(accept_plan(graph, cluster, plans.loads(plans.dumps(compiled.plan))))
    assert again.seconds == pytest.approx(report.seconds)
    assert again.rows == report.rows
    assert (again.rejected, again.search) == ((), None)
    for lane in report.lanes:
        if lane.peak is not None:
            assert lane.peak <= lane.usable


@pytest.mark.parametrize("name", ["grpo", "warm_up", "exam"])
def test_the_arithmetic_pipelines_are_explained_on_processors(name):
    from rlinf_graph.cli.loading import load_pipeline

    pipeline, _others = load_pipeline(f"pipelines/grpo_arithmetic.py:{name}")
    text = render_text(explain(compile_graph(pipeline.build(), load_cluster("2xcpu"))))
    assert "ms per iteration" in text or "s per iteration" in text
