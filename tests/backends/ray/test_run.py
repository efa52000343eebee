"""Real processes give what one process gives, where the plan says."""

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
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.compiler.schedule.candidate import to_plan
from rlinf_graph.compiler.schedule.pins import Pins
from rlinf_graph.compiler.schedule.search import Search
from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster
from tests.compiler.schedule.listing import everything

PLANS = Path(__file__).parents[2] / "plans"
Cores = Callable[..., Cluster]
Outcome = tuple[list[list[str]], dict[str, torch.Tensor], list[IterationRecord]]

pytestmark = pytest.mark.timeout(180)


def prepared(name: str, cluster: Cluster, staleness: int = 0) -> Compiled:
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    given = plans.loads((PLANS / f"{name}.json").read_text(), name)
    if staleness:
        lag = plans.SyncPlan(method="broadcast", staleness=staleness)
        given = given.model_copy(update={"syncs": {"sync policy": lag}})
    parameters: dict[str, Any] = {"max_staleness": staleness}
    return compile_pipeline(pipeline, cluster, plan=given, parameters=parameters)


def outcome(records: list[IterationRecord], folder: Path) -> Outcome:
    ordered = sorted(records, key=lambda r: r.iteration)
    texts = [[s["response"] for s in r.samples] for r in ordered]
    return texts, load_file(folder / "policy" / "model.safetensors"), ordered


def in_one_process(ready: Compiled, folder: Path, iterations: int) -> Outcome:
    records: list[IterationRecord] = []
    local.run(
        ready.program, ready.graph, ready.plan, ready.cluster,
        iterations=iterations, seed=3, report=records.append, checkpoints=folder,
    )  # fmt: skip
    return outcome(records, folder)


def on_workers(ready: Compiled, folder: Path, iterations: int, seats: dict[int, Seat]) -> Outcome:
    records: list[IterationRecord] = []
    on_ray.run(
        ready.program, ready.graph, ready.plan, ready.cluster,
        iterations=iterations, seed=3, report=records.append, checkpoints=folder,
        placed=seats.update,
    )  # fmt: skip
    return outcome(records, folder)


def worst(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("one")
    file = folder / "one.toml"
    file.write_text(
        'name = "one"\n[[node_group]]\nname = "cpu"\ndevice = "cpu-core"\n'
        "nodes = 1\ndevices_per_node = 1\ncpus = 2\nmemory_gb = 4\n"
    )
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    given = plans.loads((PLANS / "one_device.json").read_text())
    return in_one_process(compile_pipeline(pipeline, str(file), plan=given), folder, 5)


@pytest.mark.parametrize("name", ["collocated", "disaggregated", "hybrid"])
def test_every_plan_gives_the_tokens_and_weights_of_local(
    name: str, reference: Outcome, cores: Cores, tmp_path: Path, seats: dict[int, Seat]
) -> None:
    texts, weights, records = on_workers(prepared(name, cores()), tmp_path, 5, seats)
    assert texts == reference[0]
    assert worst(weights, reference[1]) <= 1e-9
    for mine, theirs in zip(records, reference[2], strict=True):
        assert mine.metrics.keys() == theirs.metrics.keys()
        assert mine.metrics["reward/mean"] == pytest.approx(theirs.metrics["reward/mean"])


def test_samples_are_exactly_as_stale_as_planned(
    cores: Cores, tmp_path: Path, seats: dict[int, Seat]
) -> None:
    ready = prepared("disaggregated", cores(), staleness=1)
    texts, weights, records = on_workers(ready, tmp_path / "ray", 4, seats)
    assert [{s["version"] for s in r.samples} for r in records] == [{0}, {0}, {1}, {2}]
    same = in_one_process(ready, tmp_path / "local", 4)
    assert texts == same[0]
    assert worst(weights, same[1]) <= 1e-9


def test_devices_live_where_the_cluster_file_says(
    ray_nodes: list[str], cores: Cores, tmp_path: Path, seats: dict[int, Seat]
) -> None:
    """Two machines of four devices: a node of Ray for each machine, a process for each device."""
    cluster = cores(devices=4, machines=2)
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    ready = compile_pipeline(
        pipeline, cluster, pins={"rollout": "0-3", "logprobs": "4-7", "train": "4-7"}
    )
    on_workers(ready, tmp_path, 1, seats)
    assert {d for d in seats if d >= 0} == set(range(8))
    machines = [{seats[d].node for d in range(4)}, {seats[d].node for d in range(4, 8)}]
    assert [len(nodes) for nodes in machines] == [1, 1]
    assert machines[0] | machines[1] == set(ray_nodes)
    assert len({seat.process for seat in seats.values()}) == len(seats)


SMALL = {"batch": 2, "minibatch": 8}


def enumerated() -> list[plans.Plan]:
    """Every tenth plan of the space for three device nodes on two cores; few samples and chunks."""
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    cluster = load_cluster("2xcpu")
    graph = run_passes(pipeline.build(**SMALL))
    space = Search(graph, cluster, CostModel(graph, cluster), grain=0.0).space(Pins())
    found = (space.candidate(answer) for answer in everything(space, stride=10))
    return [to_plan(candidate, graph, cluster) for candidate in found if candidate is not None]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    given = plans.loads((PLANS / "one_device.json").read_text())
    nodes = {"train policy": plans.NodePlan(micro_batch=8)}
    given = given.model_copy(update={"nodes": nodes})
    ready = compile_pipeline(pipeline, "1xcpu", plan=given, parameters=SMALL)
    return in_one_process(ready, tmp_path_factory.mktemp("small"), 5)


@pytest.mark.slow
@pytest.mark.parametrize("plan", enumerated(), ids=lambda plan: f"{plan.mode}")
def test_plans_all_over_the_space(
    plan: plans.Plan, small: Outcome, cores: Cores, tmp_path: Path, seats: dict[int, Seat]
) -> None:
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    ready = compile_pipeline(pipeline, cores(), plan=plan, parameters=SMALL)
    texts, weights, _records = on_workers(ready, tmp_path, 5, seats)
    assert texts == small[0]
    assert worst(weights, small[1]) <= 1e-9
