"""The command `graph`."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rlinf_graph.cli import main

ROOT = Path(__file__).parents[2]
FILE = str(ROOT / "pipelines" / "grpo_arithmetic.py")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rlinf-graph", "graph", *arguments])
    with pytest.raises(SystemExit) as stop:
        main.main()
    return int(stop.value.code or 0)


def test_graph_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "graph.svg"
    assert call(monkeypatch, f"{FILE}:grpo", "--set", "samples=4", "-o", str(picture)) == 0
    out, err = capsys.readouterr()
    assert out.startswith("grpo · 8 nodes · prompts=64, samples=4")
    assert f"picture written to {picture}" in err
    assert "other pipelines in this file: warm_up, exam" in err
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_graph_writes_nothing_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, f"{FILE}:exam") == 0
    assert "evaluate policy" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("RG0002", [f"{FILE}:nothing"]),
        ("RG0107", [f"{FILE}:grpo", "--set", "samples=many"]),
        ("RG0004", [f"{FILE}:grpo", "-o", "no/such/folder/graph.svg"]),
    ],
)
def test_bad_input_is_explained(
    code: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 1
    err = capsys.readouterr().err
    assert f"error[{code}]" in err
    assert "Traceback" not in err
