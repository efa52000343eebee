"""What `run --analyze` leaves in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlinf_graph.cli.api import RunResult
from rlinf_graph.cli.trace import write_trace
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.explain import Report, analyze, render_analysis, render_json


def write_analysis(compiled: Compiled, done: RunResult, folder: Path, backend: str) -> Report:
    """Analyze a finished run; write `analyze.txt`, `analyze.json` and `trace.json`.

    Args:
        compiled: what was run.
        done: by `run_compiled`.
        folder: where the run left its samples.
        backend: that ran it; the ranks of `local` do their work in turn, each by its own clock.
    """
    report = analyze(
        compiled, done.events, len(done.records),
        samples=_samples(folder), clock="own" if backend == "local" else "shared",
        memory=done.memory, metrics=done.records,
    )  # fmt: skip
    (folder / "analyze.txt").write_text(render_analysis(report))
    (folder / "analyze.json").write_text(render_json(report))
    write_trace(folder / "trace.json", compiled, done.events)
    return report


def _samples(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / "samples.jsonl").open() as file:
        yield from map(json.loads, file)
