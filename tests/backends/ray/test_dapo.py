"""Dynamic sampling: batches that change their size give the same wherever nodes are placed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.cluster import Cluster
from tests.backends.ray.test_run import Outcome, in_one_process, on_workers, worst

PLANS = Path(__file__).parents[2] / "plans"
ITERATIONS = 4
Cores = Callable[..., Cluster]


def plan(kind: str, rollout: str, train: str, micro_batch: int) -> plans.Plan:
    """Training in two data-parallel ranks."""
    ranks = {"rollout policy": len(plans.parse_devices(rollout)), "train policy": 2}
    places = {"rollout policy": rollout, "train policy": train}
    nodes: dict[str, dict[str, Any]] = {
        name: {"parallel": {"dp": dp}} for name, dp in ranks.items()
    }
    nodes["train policy"]["micro_batch"] = micro_batch
    parts = [{"kind": "node", "node": n, "devices": devices} for n, devices in places.items()]
    return plans.Plan.model_validate(
        {
            "format": 1,
            "pipeline": {"file": "tests/plans/dapo.py", "name": "small_dapo"},
            "mode": "hybrid",
            "placement": {"kind": kind, "parts": parts},
            "nodes": nodes,
        }
    )


APART = plan("split", "0", "1-2", micro_batch=2)
SHARED = plan("turn", "0-1", "0-1", micro_batch=4)
VARIANTS: dict[str, dict[str, Any]] = {
    "refilled": {},
    "first to finish": {"samples": 6, "keep": 4, "tries": 1.5},
    "rounds do not suffice": {"rounds": 1, "groups": 12, "batch": 6, "minibatch": 8},
    "nothing is found": {"hopeless": True},
}

pytestmark = pytest.mark.timeout(180)


def prepared(cluster: Cluster | str, given: plans.Plan | None, **parameters: Any) -> Compiled:
    pipeline, _ = load_pipeline(str(PLANS / "dapo.py"))
    return compile_pipeline(pipeline, cluster, plan=given, parameters=parameters)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """One device, each variant once."""
    known: dict[str, Outcome] = {}

    def run(variant: str) -> Outcome:
        if variant not in known:
            ready = prepared("1xcpu", None, **VARIANTS[variant])
            known[variant] = in_one_process(ready, tmp_path_factory.mktemp("one"), ITERATIONS)
        return known[variant]

    return run


def same(found: Outcome, wanted: Outcome) -> None:
    assert found[0] == wanted[0]
    assert worst(found[1], wanted[1]) <= 1e-9
    for mine, theirs in zip(found[2], wanted[2], strict=True):
        assert mine.metrics.keys() == theirs.metrics.keys()
        for name in ("filter/accepted", "refill/acceptance", "refill/rounds", "refill/short"):
            assert mine.metrics[name] == pytest.approx(theirs.metrics[name])
        assert [s["index"] for s in mine.samples] == [s["index"] for s in theirs.samples]


def test_groups_are_dropped_and_found_again(alone: Callable[[str], Outcome]) -> None:
    """Otherwise the comparisons below would hold of anything."""
    texts, weights, records = alone("refilled")
    assert all(len(found) == 32 for found in texts)
    for record in records:
        assert 0 < record.metrics["refill/acceptance"] < 1
        assert record.metrics["refill/acceptance"] == record.metrics["filter/accepted"]
        assert record.metrics["refill/rounds"] > 8 / 6
        assert record.metrics["refill/short"] == 0
        assert record.metrics["train/grad_norm"] > 0
        assert record.metrics["reward/uniform_groups"] == 0
        assert [s["index"] for s in record.samples] == list(range(32))
        assert [s["group"] for s in record.samples] == [i // 4 for i in range(32)]
    assert all(value.isfinite().all() for value in weights.values())


def test_training_goes_on_with_fewer_samples(alone: Callable[[str], Outcome]) -> None:
    texts, weights, records = alone("rounds do not suffice")
    for found, record in zip(texts, records, strict=True):
        short = record.metrics["refill/short"]
        assert 6 <= short < 12
        assert len(found) == 4 * (12 - short)
        assert record.metrics["refill/rounds"] == 1
    assert all(value.isfinite().all() for value in weights.values())
    assert worst(weights, alone("nothing is found")[1]) > 1e-4


def test_training_on_nothing_goes_on(alone: Callable[[str], Outcome]) -> None:
    texts, weights, records = alone("nothing is found")
    assert texts == [[]] * ITERATIONS
    assert all(record.metrics["refill/short"] == 8 for record in records)
    assert all(record.metrics["train/grad_norm"] == 0 for record in records)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("devices", "given"), [(3, APART), (2, SHARED)], ids=["apart", "shared"])
def test_local_gives_the_same_wherever_nodes_are(
    devices: int,
    given: plans.Plan,
    variant: str,
    alone: Callable[[str], Outcome],
    cores: Cores,
    tmp_path: Path,
) -> None:
    ready = prepared(cores(devices), given, **VARIANTS[variant])
    same(in_one_process(ready, tmp_path, ITERATIONS), alone(variant))


@pytest.mark.parametrize(
    ("variant", "devices", "given"),
    [
        pytest.param("refilled", 3, APART, id="apart"),
        pytest.param("rounds do not suffice", 2, SHARED, id="shared", marks=pytest.mark.slow),
    ],
)
def test_workers_give_what_one_process_gives(
    variant: str,
    devices: int,
    given: plans.Plan,
    alone: Callable[[str], Outcome],
    cores: Cores,
    tmp_path: Path,
    seats: dict[int, Seat],
) -> None:
    ready = prepared(cores(devices), given, **VARIANTS[variant])
    same(on_workers(ready, tmp_path, ITERATIONS, seats), alone(variant))
