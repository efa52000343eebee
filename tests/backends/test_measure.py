"""Measuring for real: a tiny pipeline, from its file to a plan whose figures are profiled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rlinf_graph.cli import main
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.cli.profile_file import read_profile
from rlinf_graph.compiler.cost.profile import Profile
from rlinf_graph.compiler.explain import explain, render_text
from rlinf_graph.ir.diagnostic import CompileError

PIPELINE = str(Path(__file__).parents[1] / "plans" / "pipeline.py")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, ray_nodes: list[str]) -> Path:
    """One that the command wrote, on the Ray cluster of all tests."""
    del ray_nodes
    file = tmp_path_factory.mktemp("profile") / "made" / "profile.json"
    main.app(["profile", PIPELINE, "--cluster", "2xcpu", "-o", str(file)], standalone_mode=False)
    return file


@pytest.fixture(scope="module")
def profile(file: Path) -> Profile:
    found = read_profile(file)
    assert found is not None
    return found


def test_every_node_is_measured(profile: Profile) -> None:
    measured = Counter((m.node, m.kind) for m in profile.measurements)
    assert measured == {
        ("dataset", "host"): 1,
        ("rollout policy", "chunk"): 4,
        ("verify", "host"): 3,
        ("logprobs reference", "chunk"): 3,
        ("group_advantages", "host"): 3,
        ("train policy", "accumulate"): 4,
        ("train policy", "optimizer_step"): 1,
        ("sync policy", "sync"): 1,
        ("rollout policy", "handover"): 4,
    }
    assert len(profile.corrections) == len(measured)
    assert all(len(m.seconds) >= 3 and min(m.seconds) > 0 for m in profile.measurements)


def test_sizes_are_those_that_went_through(profile: Profile) -> None:
    rollouts = [m for m in profile.measurements if (m.node, m.kind) == ("rollout policy", "chunk")]
    assert [m.samples for m in rollouts] == [8, 16, 32, 32]
    assert {m.group for m in rollouts} == {4}
    assert [max(m.lengths) for m in rollouts][-2:] == [4, 2]
    assert all(m.prompt_tokens > 0 for m in rollouts)
    micro_batches = [m for m in profile.measurements if m.kind == "accumulate"]
    assert [m.samples for m in micro_batches] == [1, 4, 8, 16]
    assert all(max(m.lengths) > 4 for m in micro_batches)


def test_two_devices_are_measured_at_once(profile: Profile) -> None:
    assert all(len(m.seconds) % 2 == 0 for m in profile.measurements if m.kind == "handover")
    assert min(len(m.seconds) for m in profile.measurements) >= 2 * 3


def test_a_plan_of_measured_nodes(profile: Profile) -> None:
    pipeline, _ = load_pipeline(PIPELINE)
    compiled = compile_pipeline(pipeline, "2xcpu", profile=profile)
    origins = {row.name: row.origin for row in explain(compiled).rows}
    sync = origins.pop("sync → policy")
    assert sync in ("profiled", "roofline")  # roofline where weights go from device to device
    assert set(origins.values()) == {"profiled"}
    assert f"profiled: {profile.file}, {profile.date[:10]}" in render_text(explain(compiled))


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ("local", ["one process doing the work of 2 devices", "cost from"]),
        ("ray", ["estimated", "most memory in use on a device"]),
    ],
)
def test_run_takes_a_profile(
    backend: str, told: list[str], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", PIPELINE, "--cluster", "2xcpu", "--profile", str(file), "--iterations", "1"]
    command += ["--backend", backend, "--analyze", "--out", str(tmp_path)]
    main.app(command, standalone_mode=False)
    out = capsys.readouterr().out
    assert [text for text in told if text not in out] == []


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot read") as raised:
        read_profile(tmp_path / "none.json")
    assert raised.value.diagnostics[0].code == "RG0408"


@pytest.mark.usefixtures("ray_nodes")
def test_a_failing_function_is_named(tmp_path: Path) -> None:
    text = Path(PIPELINE).read_text("utf-8").replace("return sum(", "return 1 / 0 + sum(")
    (tmp_path / "pipeline.py").write_text(
        text.replace("Path(__file__).parents[2]", f"Path({str(Path(PIPELINE).parents[2])!r})")
        .replace("Path(__file__).parent", f"Path({str(Path(PIPELINE).parent)!r})")
    )  # fmt: skip
    command = ["profile", str(tmp_path / "pipeline.py"), "--cluster", "2xcpu"]
    with pytest.raises(CompileError) as raised:
        main.app(command, standalone_mode=False)
    assert "digits_right" in str(raised.value)
