"""Loops, states and environments on workers: the same as in one process, whatever the groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlinf_graph.backends.local import run as local
from rlinf_graph.backends.ray import run as on_ray
from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.ir.cluster import Cluster

PIPELINE = str(Path(__file__).parents[2] / "plans" / "embodied.py")
ITERATIONS = 3

pytestmark = pytest.mark.timeout(180)


def prepared(cluster: Any, groups: int, pins: dict[str, str] | None = None) -> Compiled:
    """The best plan with other groups: the outer loop's samples wait for each other then, too."""
    pipeline, _ = load_pipeline(PIPELINE)
    best = compile_pipeline(pipeline, cluster, pins=pins).plan
    regions = dict.fromkeys(best.regions, groups)
    nodes = {
        name: s.model_copy(update={"chunks": groups if name.startswith("act") else s.chunks})
        for name, s in best.nodes.items()
    }
    plan = best.model_copy(update={"regions": regions, "nodes": nodes})
    return compile_pipeline(pipeline, cluster, plan=plan)


def outcome(
    ready: Compiled, backend: Any, folder: Path, **more: Any
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    records: list[IterationRecord] = []
    backend.run(
        ready.program, ready.graph, ready.plan, ready.cluster, iterations=ITERATIONS, seed=3,
        report=records.append, checkpoints=folder, **more,
    )  # fmt: skip
    metrics = [r.metrics for r in sorted(records, key=lambda r: r.iteration)]
    weights = {
        f"{model}.{name}": value
        for model in ("policy", "critic")
        for name, value in load_file(folder / model / "model.safetensors").items()
    }
    return metrics, weights


def require_same(one: Any, other: Any) -> None:
    assert one[1].keys() == other[1].keys()
    assert max(float((one[1][k] - other[1][k]).abs().max()) for k in one[1]) <= 1e-9
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=1e-9, nan_ok=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return outcome(prepared("1xcpu", groups=1), local, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_change_nothing(groups: int, reference: Any, tmp_path: Path) -> None:
    require_same(outcome(prepared("1xcpu", groups), local, tmp_path), reference)


@pytest.mark.parametrize(
    ("groups", "pins"),
    [
        pytest.param(
            1,
            {"act": "0", "train policy": "0", "values": "1", "train critic": "1"},
            id="apart",
            marks=pytest.mark.slow,
        ),
        pytest.param(2, {"act": "0-1", "train policy": "0-1"}, id="spread"),
    ],
)
def test_workers_live_through_the_same(
    groups: int,
    pins: dict[str, str],
    reference: Any,
    cores: Callable[..., Cluster],
    tmp_path: Path,
    seats: dict[int, Seat],
) -> None:
    ready = prepared(cores(), groups, pins)
    require_same(outcome(ready, on_ray, tmp_path, placed=seats.update), reference)


def test_the_environments_go_on_and_the_policy_learns(reference: Any) -> None:
    """Otherwise everything above would hold of runs in which nothing happens."""
    metrics, _weights = reference
    assert len({m["last/sum"] for m in metrics}) == ITERATIONS
    assert all(m["train/grad_norm"] > 0 for m in metrics)
    assert ["evaluation/return" in m for m in metrics] == [True, False, True]
