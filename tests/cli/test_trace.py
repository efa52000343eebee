"""The trace of a run, and what analyze says of one, with the small decoder on two cores."""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.backends.local import run as local
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli import main
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.cli.trace import trace, write_trace
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.explain import Report, analyze, render_analysis
from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.timeline import Event

PLANS = Path(__file__).parents[1] / "plans"
ITERATIONS = 3
CLUSTER = """name = "two"
[[node_group]]
name = "cpu"
device = "cpu-core"
nodes = 1
devices_per_node = 2
cpus = 2
memory_gb = 8
"""


@pytest.fixture(scope="module", params=["collocated", "disaggregated"])
def done(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Compiled, list[Event], list[IterationRecord]]:
    file = tmp_path_factory.mktemp("cluster") / "two.toml"
    file.write_text(CLUSTER)
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    given = plans.loads((PLANS / f"{request.param}.json").read_text())
    ready = compile_pipeline(pipeline, load_cluster(str(file)), plan=given)
    records: list[IterationRecord] = []
    run = local.run(
        ready.program, ready.graph, ready.plan, ready.cluster,
        iterations=ITERATIONS, report=records.append,
    )  # fmt: skip
    return ready, run.events, records


@pytest.fixture(scope="module")
def report(done: tuple[Compiled, list[Event], list[IterationRecord]]) -> Report:
    ready, events, records = done
    samples = [sample for record in records for sample in record.samples]
    return analyze(ready, events, ITERATIONS, samples=samples, clock="own")


@pytest.fixture(scope="module")
def made(done: tuple[Compiled, list[Event], list[IterationRecord]]) -> dict[str, Any]:
    return json.loads(json.dumps(trace(done[0], done[1])))


def of(made: dict[str, Any], *phases: str) -> list[dict[str, Any]]:
    return [record for record in made["traceEvents"] if record["ph"] in phases]


def test_measured_busy_seconds_are_those_of_the_events(done, report):
    _ready, events, _records = done
    for row in report.rows:
        if row.name.startswith("sync"):
            continue
        own = [e for e in events if e.group == row.name and e.kind != "sync"]
        ranks = len({e.at.rank for e in own})
        busy = [
            sum(e.seconds for e in own if e.at.iteration == i) / ranks for i in range(1, ITERATIONS)
        ]
        assert row.measured.busy.median == pytest.approx(statistics.median(busy)), row.name


def test_deliveries_are_those_of_the_events(done, report):
    _ready, events, _records = done
    synced = [e for e in events if e.kind == "sync"]
    ranks = len({e.at.rank for e in synced})
    seconds = [
        sum(e.seconds for e in synced if e.at.iteration == i) / ranks for i in range(1, ITERATIONS)
    ]
    row = next(r for r in report.rows if r.name.startswith("sync"))
    assert row.measured.busy.median == pytest.approx(statistics.median(seconds))


def test_a_real_run_adds_up_and_every_gap_has_a_reason(report):
    for lane in report.run.lanes:
        busy = sum(part.measured_s for part in lane.parts)
        assert busy + lane.idle_s == pytest.approx(lane.seconds)
        assert not [wait for wait in lane.waits if wait.kind == "idle"]


def test_samples_are_as_old_as_the_plan_says(report):
    assert [(age.age, age.samples) for age in report.run.ages] == [(0, 32 * ITERATIONS)]
    assert "96 samples, all at 0" in render_analysis(report)


def test_every_event_is_a_slice(done, made):
    _ready, events, _records = done
    slices = of(made, "X")
    assert made["displayTimeUnit"] == "ms"
    assert len(slices) == len(events)
    for event, piece in zip(events, slices, strict=True):
        assert piece["ts"] == pytest.approx(event.start * 1e6)
        assert piece["dur"] == pytest.approx(event.seconds * 1e6)
        assert piece["args"]["iteration"] == event.at.iteration
        assert piece["args"]["minibatch"] == event.at.minibatch


def test_a_thread_is_one_rank_of_one_node_and_has_a_name(done, made):
    _ready, events, _records = done
    names = {
        (r["pid"], r["tid"]): r["args"]["name"] for r in of(made, "M") if r["name"] == "thread_name"
    }
    seen = Counter((r["pid"], r["tid"]) for r in of(made, "X"))
    assert set(seen) == set(names)
    assert len(names) == len({(e.group, e.at.rank) for e in events})
    assert len({tid for _pid, tid in names}) == len(names)
    processes = {r["pid"]: r["args"]["name"] for r in of(made, "M") if r["name"] == "process_name"}
    assert {pid for pid, _tid in names} == set(processes)
    assert "host" in processes.values()
    assert any(name.startswith("train policy · rank 0 · cpu") for name in names.values())


def test_slices_of_a_thread_do_not_overlap(made):
    until: dict[int, float] = {}
    for piece in sorted(of(made, "X"), key=lambda r: r["ts"]):
        assert piece["ts"] >= until.get(piece["tid"], 0.0) - 1e-3
        until[piece["tid"]] = piece["ts"] + piece["dur"]


def test_arrows_begin_and_end_on_slices(made):
    starts, ends = of(made, "s"), of(made, "f")
    assert starts
    assert [r["id"] for r in starts] == [r["id"] for r in ends]
    slices = of(made, "X")
    for arrow in (*starts, *ends):
        assert any(
            piece["tid"] == arrow["tid"]
            and piece["ts"] - 1e-3 <= arrow["ts"] <= piece["ts"] + piece["dur"] + 1e-3
            for piece in slices
        )
    assert all(a["ts"] <= b["ts"] + 1e-3 for a, b in zip(starts, ends, strict=True))


def test_run_prints_and_keeps_the_analysis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "two.toml").write_text(CLUSTER)
    out = tmp_path / "out"
    arguments = [
        "run", str(PLANS / "pipeline.py"), "--plan", str(PLANS / "collocated.json"),
        "--cluster", str(tmp_path / "two.toml"), "--iterations", "2", "--out", str(out),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["rlinf-graph", *arguments, "--analyze"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 0
    text = (out / "analyze.txt").read_text()
    assert text in capsys.readouterr().out
    assert "64 samples, all at 0; oldest 0, limit 0" in text
    assert json.loads((out / "analyze.json").read_text())["run"]["iterations"] == 2
    assert json.loads((out / "trace.json").read_text())["traceEvents"]


def test_a_trace_that_cannot_be_written(done, tmp_path):
    with pytest.raises(CompileError, match="cannot write"):
        write_trace(tmp_path / "missing" / "trace.json", done[0], done[1])
