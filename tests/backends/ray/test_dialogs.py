"""Dialogs of several turns on workers: the same as in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.ir.cluster import Cluster
from tests.backends.ray.test_run import in_one_process, on_workers, worst

PIPELINE = str(Path(__file__).parents[2] / "plans" / "dialog.py")

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize(
    "pins",
    [
        pytest.param({"reply": "0", "train": "1"}, id="apart"),
        pytest.param({"reply": "0-1", "train": "0-1"}, id="both", marks=pytest.mark.slow),
    ],
)
def test_workers_hold_the_same_dialogs(
    pins: dict[str, str], cores: Callable[..., Cluster], tmp_path: Path, seats: dict[int, Seat]
) -> None:
    pipeline, _ = load_pipeline(f"{PIPELINE}:small_dialogs")
    one = compile_pipeline(pipeline, "1xcpu")
    texts, weights, records = in_one_process(one, tmp_path / "one", 2)
    two = compile_pipeline(pipeline, cores(), pins=pins)
    found = on_workers(two, tmp_path / "two", 2, seats)
    assert found[0] == texts
    assert worst(found[1], weights) <= 1e-9
    for mine, theirs in zip(found[2], records, strict=True):
        assert mine.samples == theirs.samples
        assert mine.metrics["tool/calls"] == theirs.metrics["tool/calls"] > 0
