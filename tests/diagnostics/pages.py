"""Run what a page about a diagnostic shows: its files are written, its commands are given."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlinf_graph.cli import main
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_module, pipelines_of
from rlinf_graph.ir.diagnostic import page
from rlinf_graph.nodes.plugins import load_plugins

ROOT = Path(__file__).parents[2]
CLUSTER = """
name = "8 GPUs"

[[node_group]]
name = "gpus"
device = "H100"
nodes = 1
devices_per_node = 8
"""
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Half:
    """What stands before, or after, the line `Mended:`."""

    blocks: tuple[tuple[str, str], ...]

    def run(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        kinds = [kind for kind, _text in self.blocks]
        for kind, text in self.blocks:
            if kind != "console":
                (folder / file_name(kind, text)).write_text(text)
        for kind, text in self.blocks:
            if kind == "console":
                for line in text.splitlines():
                    command(line.removeprefix("$ rlinf-graph "))
        if "toml" in kinds and "console" not in kinds:
            install_plugin(folder, monkeypatch)
        elif "console" not in kinds:
            compile_last(folder / "pipeline.py")


def file_name(kind: str, text: str) -> str:
    named = NAMED.match(text)
    return named[1] if named else {"python": "pipeline.py", "toml": "cluster.toml"}[kind]


def halves(code: str) -> tuple[Half, Half]:
    before, after = page(code).split("\nMended:\n")
    return Half(tuple(FENCE.findall(before))), Half(tuple(FENCE.findall(after)))


def command(line: str) -> None:
    """Give a command of `rlinf-graph`; `compile` leaves its plan in a file."""
    words = shlex.split(line)
    extra = ["-o", "plan.json"] if words[0] == "compile" and "-o" not in words else []
    main.app([*words, *extra], standalone_mode=False)


def compile_last(path: Path) -> None:
    declared = list(pipelines_of(load_module(path)).values())
    (path.parent / "gpus.toml").write_text(CLUSTER)
    if declared:
        compile_pipeline(declared[-1], "gpus.toml")


def install_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an installed package of the entry points in `cluster.toml`, and look for node types."""
    groups = tomllib.loads((folder / "cluster.toml").read_text())["project"]["entry-points"]
    info = folder / "plugin-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in p.items()) for g, p in groups.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    load_plugins()
    sys.modules.pop("length_penalty", None)
