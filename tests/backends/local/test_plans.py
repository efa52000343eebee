"""Plans differ in where and when, never in what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.backends.local import run as local
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster

PLANS = Path(__file__).parents[2] / "plans"
ITERATIONS = 5


def two_cores(folder: Path) -> Cluster:
    file = folder / "two.toml"
    file.write_text(
        'name = "two"\n[[node_group]]\nname = "cpu"\ndevice = "cpu-core"\nnodes = 1\n'
        "devices_per_node = 2\ncpus = 2\nmemory_gb = 8\n"
    )
    return load_cluster(str(file))


def compiled(name: str, folder: Path, **parameters: Any) -> Compiled:
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    given = plans.loads((PLANS / f"{name}.json").read_text(), name)
    return compile_pipeline(pipeline, two_cores(folder), plan=given, parameters=parameters)


def carry_out(ready: Compiled) -> tuple[list[list[str]], dict[str, Any], list[IterationRecord]]:
    """Responses of each iteration, the trained weights, and the records."""
    records: list[IterationRecord] = []
    done = local.run(
        ready.program, ready.graph, ready.plan, ready.cluster,
        iterations=ITERATIONS, seed=3, report=records.append,
    )  # fmt: skip
    records.sort(key=lambda r: r.iteration)
    texts = [[s["response"] for s in r.samples] for r in records]
    trainer = done.machine.trainers(ready.program.group("train policy"))[0]
    return texts, {k: v.detach().clone() for k, v in trainer.weights().items()}, records


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return carry_out(compiled("one_device", tmp_path_factory.mktemp("one")))


@pytest.mark.parametrize("name", ["collocated", "disaggregated", "hybrid"])
def test_every_plan_gives_the_tokens_and_weights_of_one_device(
    name: str, reference: Any, tmp_path: Path
) -> None:
    texts, weights, _ = carry_out(compiled(name, tmp_path))
    assert texts == reference[0]
    worst = max(float((weights[k] - v).abs().max()) for k, v in reference[1].items())
    assert worst <= 1e-9


def test_training_moved_the_weights_and_rewards_differ(reference: Any) -> None:
    """Otherwise the comparison above would hold of anything."""
    _texts, _weights, records = reference
    assert len(records) == ITERATIONS
    assert all(r.metrics["train/grad_norm"] > 0 for r in records)
    assert len({r.metrics["reward/mean"] for r in records}) > 1


@pytest.mark.parametrize("name", ["collocated", "hybrid"])
def test_several_epochs_take_the_same_permuted_samples(name: str, tmp_path: Path) -> None:
    one = carry_out(compiled("one_device", tmp_path, epochs=2))
    other = carry_out(compiled(name, tmp_path, epochs=2))
    assert other[0] == one[0]
    assert max(float((other[1][k] - v).abs().max()) for k, v in one[1].items()) <= 1e-9


def test_samples_carry_the_version_they_were_drawn_with(reference: Any) -> None:
    for record in reference[2]:
        assert {s["version"] for s in record.samples} == {record.iteration}


def test_staleness_is_exact_and_no_sample_is_older(tmp_path: Path) -> None:
    ready = compiled("disaggregated", tmp_path, max_staleness=1)
    lagging = ready.plan.model_copy(update={"syncs": {"sync policy": plans.SyncPlan(staleness=1)}})
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    ready = compile_pipeline(pipeline, ready.cluster, plan=lagging, parameters={"max_staleness": 1})
    _texts, _weights, records = carry_out(ready)
    versions = [{s["version"] for s in r.samples} for r in records]
    assert versions == [{0}, {0}, {1}, {2}, {3}]


@pytest.mark.parametrize(
    "more", [{"balanced": True}, {"micro_tokens": 40}, {"balanced": True, "micro_tokens": 40}]
)
def test_cutting_by_length_gives_the_same_weights(
    more: dict[str, Any], reference: Any, tmp_path: Path
) -> None:
    """Data-parallel ranks with equal tokens, and calls of few tokens, divide the same sums."""
    ready = compiled("collocated", tmp_path)
    train = ready.plan.settings("train policy").model_copy(update=more)
    assert train.parallel.dp > 1
    plan = ready.plan.model_copy(update={"nodes": ready.plan.nodes | {"train policy": train}})
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    texts, weights, _ = carry_out(compile_pipeline(pipeline, ready.cluster, plan=plan))
    assert texts == reference[0]
    assert max(float((weights[k] - v).abs().max()) for k, v in reference[1].items()) <= 1e-9
