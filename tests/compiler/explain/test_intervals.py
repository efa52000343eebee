"""How far off an iteration may be, and which plans cannot be told apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from rlinf_graph.compiler.compile import Compiled, compile_graph
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.profile import Correction, Machine, Profile, versions_here
from rlinf_graph.compiler.cost.uncertainty import Widths, of_profile
from rlinf_graph.compiler.explain import Report, explain, render_json, render_text
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.graph_file import digest
from rlinf_graph.ir.plan import NodePlan
from tests.compiler.explain.conftest import GRPO, WIDTHS, Bench, RoundCosts, cluster_of, grpo

RESIDUAL, SPREAD = 0.03, 0.02
PROFILED = of_profile(RESIDUAL, SPREAD)
DEVICES = ("rollout policy", "evaluate policy", "logprobs reference", "train policy")
KINDS = {"train policy": ("accumulate", "optimizer_step")}


def row(report: Report, name: str):
    return next(r for r in report.rows if r.name == name)


def known(figures, *names: str, width: float = PROFILED, origin: str = "profiled"):
    """The figures with some nodes measured; their seconds stay."""
    return {
        name: replace(own, origin=origin, width=width) if name in names else own
        for name, own in figures.items()
    }


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return Bench().compiled(grpo.build(), cluster_of(16), GRPO)


@pytest.fixture
def reported(compiled):
    """The report of the best plan on 16 devices when some nodes have been measured."""

    def made(*names: str, widths: Widths = WIDTHS) -> Report:
        figures = known(GRPO, *names)
        costs = RoundCosts(compiled.graph, compiled.cluster, figures, 1.0, widths)
        return explain(replace(compiled, costs=costs))

    return made


def test_closed_forms_have_the_width_of_iterations(reported):
    report = reported()
    assert report.width == pytest.approx(WIDTHS.iteration)
    low, high = report.interval
    assert (low, high) == pytest.approx(
        (report.seconds / math.exp(WIDTHS.iteration), report.seconds * math.exp(WIDTHS.iteration))
    )
    text = render_text(report)
    assert f"{report.seconds:.1f} s per iteration (80%: {low:.1f} to {high:.0f})" in text
    assert row(report, "train policy").width == WIDTHS.passes
    assert row(report, "rollout policy").width == WIDTHS.sampling
    assert row(report, "sync → policy").width == WIDTHS.sync
    assert row(report, "verify").width is None


def test_what_was_measured_counts_by_its_share(reported):
    """Collocated: all nodes are on the one lane; deliveries stay closed forms."""
    report = reported(*DEVICES)
    assert report.mode == "collocated"
    (lane,) = report.lanes
    closed = sum(s.end_s - s.start_s for s in lane.segments if s.kind != "work") / lane.busy_s
    assert 0 < closed < 0.1
    assert report.width == pytest.approx(closed * WIDTHS.iteration + (1 - closed) * PROFILED)


def test_the_more_is_measured_the_narrower(reported):
    names = ("rollout policy", "train policy", "logprobs reference")
    widths = [reported(*names[:count]).width for count in range(4)]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 4


def test_no_narrower_than_the_longest_node(reported):
    """The rollout takes half of the time, and nobody has measured it."""
    report = reported("train policy", "logprobs reference", "evaluate policy")
    assert report.bottleneck.busiest.nodes[0][0] == "rollout policy"
    assert report.width == pytest.approx(WIDTHS.iteration)


def test_where_latency_decides_the_chain_counts(bench):
    graph, cluster = grpo.build(max_staleness=0), cluster_of(16)
    pins = {"rollout policy": "0-7", "train policy": "8-15", "logprobs reference": "8-15"}
    compiled = bench.compiled(graph, cluster, GRPO, pins=pins)
    widths = list[float]()
    for names in ((), ("rollout policy",), ("rollout policy", "train policy")):
        costs = RoundCosts(compiled.graph, cluster, known(GRPO, *names), 1.0)
        report = explain(replace(compiled, costs=costs))
        assert report.bottleneck.kind == "latency"
        widths.append(report.width)
    assert WIDTHS.iteration == pytest.approx(widths[0])
    assert widths[0] > widths[1] > widths[2] > PROFILED


def ties(report: Report) -> list[float]:
    return [other.seconds / report.seconds for other in report.rejected if other.tie]


@pytest.mark.parametrize("width", [0.03, 0.06, 0.3])
def test_plans_nearer_than_the_ratio_is_known_are_a_tie(reported, width):
    report = reported(widths=replace(WIDTHS, compared=width))
    slower = [r.seconds / report.seconds for r in report.rejected if r.seconds is not None]
    assert 1.03 < slower[0] < 1.07
    assert ties(report) == [ratio for ratio in slower if math.log(ratio) < width]
    text = render_text(report)
    assert text.count("% tie ") == len({f"{ratio:.3f}" for ratio in ties(report)})
    assert ("tie: nearer than estimates can tell" in text) == (width > 0.05)


def test_measured_nodes_tell_plans_apart(reported):
    assert ties(reported(widths=replace(WIDTHS, compared=0.1)))
    measured = reported(*DEVICES, widths=replace(WIDTHS, compared=0.1))
    assert not ties(measured)
    assert measured.mode == "collocated"
    assert {r.width for r in measured.rejected if r.width} != {0.1}


def test_the_plan_known_worse_decides_how_near_is_a_tie(reported):
    """Side by side the rollout, which nobody measured, is all of the bottleneck."""
    report = reported("train policy", "logprobs reference", "evaluate policy")
    width = {r.mode: r.width for r in reversed(report.rejected) if r.seconds}
    assert width["disaggregated"] == pytest.approx(WIDTHS.compared, rel=0.02)
    assert PROFILED < width["hybrid"] < 0.9 * WIDTHS.compared


def test_the_choice_does_not_depend_on_widths(bench):
    wide, narrow = (
        bench.report(grpo.build(), cluster_of(16), GRPO, widths=replace(WIDTHS, compared=width))
        for width in (1.0, 0.0)
    )
    assert [r.tie for r in wide.rejected if r.seconds] == [True] * 4
    assert not ties(narrow)
    assert (wide.seconds, wide.layout) == (narrow.seconds, narrow.layout)


def test_each_origin_that_occurs_is_explained(compiled):
    figures = known(GRPO, "rollout policy", width=0.12, origin="measured kernel")
    figures |= known(figures, "logprobs reference", width=0.5)
    costs = RoundCosts(compiled.graph, compiled.cluster, figures, 1.0)
    report = explain(replace(compiled, costs=costs))
    text = render_text(report)
    lines = {line.split()[1]: line for line in text.splitlines() if "gpu 0-" in line}
    assert any(line.endswith("  kernel ±13%") for line in lines.values())
    assert any(line.endswith("  roofline ±65%") for line in lines.values())
    for word in ("roofline: ", "kernel: ", "±: "):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
    assert row(report, "rollout policy").origin == "measured kernel"


def test_json_has_widths_and_intervals(reported):
    report = reported("train policy")
    data = json.loads(render_json(report))
    assert data["interval"] == pytest.approx(list(report.interval))
    train = next(r for r in data["rows"] if r["name"] == "train policy")
    assert train["width"] == pytest.approx(PROFILED)
    assert math.log(train["interval"][1] / train["estimate"]["busy_s"]) == pytest.approx(PROFILED)
    host = next(r for r in data["rows"] if r["name"] == "verify")
    assert (host["width"], host["interval"]) == (None, None)
    assert all(r["tie"] == (math.log(r["seconds"] / data["seconds"]) < r["width"])
               for r in data["rejected"] if r["seconds"])  # fmt: skip


def profile_of(graph: Graph, cluster: Cluster) -> Profile:
    """As if every device node had been found to take what was estimated."""
    checked = run_passes(graph)
    costs = CostModel(checked, cluster)
    corrections = [
        Correction(
            subject=costs.corrections.subject(checked.node(name), (0,), NodePlan()),
            kind=kind,
            overhead_s=0.0,
            factor=1.0,
            residual=RESIDUAL,
            spread=SPREAD,
        )
        for name in DEVICES
        for kind in KINDS.get(name, ("chunk",))
    ]
    return Profile(
        pipeline=graph.name,
        graph=digest(checked),
        date="2026-01-01T00:00:00+00:00",
        machine=Machine.of(cluster.groups[0]),
        versions=versions_here(),
        corrections=tuple(corrections),
        file="profile.json",
    )


@pytest.fixture
def plain_and_profiled() -> tuple[Compiled, Compiled]:
    graph, cluster = grpo.build(max_staleness=0), load_cluster("4xH100")
    pins = {name: "engine torch" for name in DEVICES}
    return (
        compile_graph(graph, cluster, pins=pins),
        compile_graph(graph, cluster, pins=pins, profile=profile_of(graph, cluster)),
    )


def test_a_profile_narrows_the_intervals(plain_and_profiled):
    plain, profiled = map(explain, plain_and_profiled)
    for name in DEVICES:
        assert row(profiled, name).origin == "profiled"
        assert row(profiled, name).width < row(plain, name).width
    assert profiled.width < plain.width
    text = render_text(profiled)
    assert "profiled: profile.json, 2026-01-01" in text
    assert f"±{round(100 * math.expm1(row(profiled, 'rollout policy').width))}%" in text
