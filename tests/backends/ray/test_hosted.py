"""Engines in processes of their own, by another interpreter, do what they do in the rank's."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rlinf_graph.backends.engines import Instance
from rlinf_graph.backends.local import run as local
from rlinf_graph.backends.ray import run as on_ray
from rlinf_graph.backends.ray.hosted import HostedEngines, Proxy, launch
from rlinf_graph.backends.ray.placement import Placement
from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.backends.ray.weights import Arriving, Transport, put_buckets
from rlinf_graph.backends.ray.workers import WorkerError
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir import packed
from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.batches import Prompts
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.engine import Key, Sampling, Shard
from tests.backends.ray.test_run import outcome, worst

PLANS = Path(__file__).parents[2] / "plans"
Cores = Callable[..., Cluster]

pytestmark = [pytest.mark.timeout(300), pytest.mark.engines]


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter that tells that it was used."""
    made = tmp_path / "python"
    made.write_text(f'#!/bin/sh\nexport STARTED_BY="$0"\nexec {sys.executable} "$@"\n')
    made.chmod(0o755)
    return str(made)


def prepared(cluster: Cluster, name: str, **nodes: plans.NodePlan) -> Compiled:
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    given = plans.loads((PLANS / f"{name}.json").read_text(), name)
    changed = {**given.nodes, **{node.replace("_", " "): made for node, made in nodes.items()}}
    given = given.model_copy(update={"nodes": changed})
    return compile_pipeline(pipeline, cluster, plan=given)


def test_a_run_with_hosted_engines_gives_the_tokens_and_weights_of_local(
    cores: Cores, tmp_path: Path, seats: dict[int, Seat], python: str
) -> None:
    ready = prepared(cores(), "disaggregated")
    mine: list[IterationRecord] = []
    done = on_ray.run(
        ready.program, ready.graph, ready.plan, ready.cluster, iterations=3, seed=3,
        report=mine.append, checkpoints=tmp_path / "ray", placed=seats.update,
        pythons={"torch": python}, transport=Transport(bucket=10_000, checksums=True),
    )  # fmt: skip
    theirs: list[IterationRecord] = []
    local.run(
        ready.program, ready.graph, ready.plan, ready.cluster, iterations=3, seed=3,
        report=theirs.append, checkpoints=tmp_path / "local",
    )  # fmt: skip
    ours, expected = outcome(mine, tmp_path / "ray"), outcome(theirs, tmp_path / "local")
    assert ours[0] == expected[0]
    assert worst(ours[1], expected[1]) <= 1e-9
    for here, there in zip(ours[2], expected[2], strict=True):
        assert here.metrics.keys() == there.metrics.keys()
        assert here.metrics["train/loss"] == pytest.approx(there.metrics["train/loss"])
    assert done.memory.keys() == {0, 1}


def test_gradients_of_hosted_replicas_are_summed(
    cores: Cores, tmp_path: Path, seats: dict[int, Seat]
) -> None:
    two = plans.NodePlan(parallel=plans.Parallel(dp=2), micro_batch=4)
    ready = prepared(cores(), "collocated", train_policy=two)
    found: list[dict[str, torch.Tensor]] = []
    for folder, pythons in (("hosted", {"torch": sys.executable}), ("own", {})):
        records: list[IterationRecord] = []
        on_ray.run(
            ready.program, ready.graph, ready.plan, ready.cluster, iterations=2, seed=3,
            report=records.append, checkpoints=tmp_path / folder, placed=seats.update,
            pythons=pythons,
        )  # fmt: skip
        found.append(outcome(records, tmp_path / folder)[1])
    assert worst(*found) <= 1e-12


@pytest.fixture
def proxies(
    cores: Cores, ray_nodes: list[str], python: str
) -> Iterator[tuple[Compiled, dict[Instance, Any]]]:
    ready = prepared(cores(), "disaggregated")
    placement = Placement(ready.cluster)
    hosted = HostedEngines(
        ready.graph, ready.plan, ready.cluster, ready.program.groups, placement,
        seed=3, initial={}, pythons={"torch": python},
    )  # fmt: skip
    try:
        hosted.wait()
        yield ready, hosted.proxies
    finally:
        hosted.close()
        placement.remove()


def test_a_proxy_is_an_engine(
    proxies: tuple[Compiled, dict[Instance, Any]], tmp_path: Path
) -> None:
    ready, made = proxies
    samples = next(e for i, e in made.items() if not i.trains and i.port.name == "SERVED")
    trains = next(e for i, e in made.items() if i.trains)
    assert isinstance(samples, Proxy)
    model = ready.graph.model("policy")
    own = TorchEngine(model, seed=3, device="cpu", dtype="float64", trainable=True)
    prompts = Prompts(
        index=torch.arange(3), group=torch.arange(3), prompts=["1+2=", "3+4=", "5+6="],
        columns=[{}, {}, {}],
    )  # fmt: skip
    asked = prompts, Sampling(2, 4), Key(3, "rollout", 0), 7
    expected = own.generate(*asked)
    for given in (samples.generate(*asked), packed.concat(list(samples.stream(*asked)))):
        assert given.responses == expected.responses
        assert torch.equal(given.logprobs, expected.logprobs)
    samples.abort()
    assert torch.equal(trains.logprobs(expected), own.logprobs(expected))
    new = {name: values + 1 for name, values in own.weights().items()}
    samples.update_weights(iter(new.items()), 5)
    assert samples.version == 5
    for shard in samples.shards():
        assert torch.equal(shard.values, new[shard.name])
    trains.load_state(trains.state())
    trains.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "config.json").exists()
    with pytest.raises(CompileError, match="RG0604"):
        samples.update_weights([("nothing", torch.zeros(1))])
    with pytest.raises(CompileError, match="has head `lm`; this needs `value`"):
        trains.values(expected)


def test_an_engine_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(launch, "SILENCE_S", 6.0)
    _ready, made = request.getfixturevalue("proxies")
    samples = next(engine for instance, engine in made.items() if not instance.trains)
    (process,) = samples._group.processes
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(
            WorkerError, match=rf"`torch policy 0 .*process {process}\. It is stopped"
        ):
            samples.tokenize(["1+2="])
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_model_that_cannot_be_loaded_is_told_as_elsewhere(
    cores: Cores, seats: dict[int, Seat], tmp_path: Path
) -> None:
    ready = prepared(cores(), "disaggregated")
    models = tuple(replace(m, path=str(tmp_path / "absent")) for m in ready.graph.models)
    with pytest.raises(CompileError, match=r"RG0503.*absent"):
        on_ray.run(
            ready.program, replace(ready.graph, models=models), ready.plan, ready.cluster,
            iterations=1, pythons={"torch": sys.executable}, placed=seats.update,
        )  # fmt: skip


def parts(whole: torch.Tensor, cuts: int, dim: int) -> list[Shard]:
    pieces = whole.chunk(cuts, dim=dim)
    starts = [sum(p.shape[dim] for p in pieces[:at]) for at in range(cuts)]
    offsets = [tuple(start if d == dim else 0 for d in range(whole.ndim)) for start in starts]
    return [Shard("w", tuple(whole.shape), o, p) for o, p in zip(offsets, pieces, strict=True)]


@pytest.mark.parametrize("dim", [0, 1])
def test_parts_of_several_processes_become_whole_weights(ray_nodes: list[str], dim: int) -> None:
    cut, whole = torch.randn(6, 8), torch.randn(3).bfloat16()
    first, second = parts(cut, 2, dim)
    third = Shard("b", (3,), (0,), whole)
    for bucket, buckets in ((1, [1, 2]), (1 << 20, [1, 1])):
        transport = Transport(bucket, checksums=True)
        members = [put_buckets([first], transport), put_buckets([third, second], transport)]
        assert [len(member) for member in members] == buckets
        found = dict(Arriving("policy", members))
        assert found.keys() == {"w", "b"}
        assert torch.equal(found["w"], cut)
        assert torch.equal(found["b"], whole)


def test_a_weight_that_is_not_complete_and_one_that_was_changed_are_refused(
    ray_nodes: list[str],
) -> None:
    transport = Transport(checksums=True)
    first, _second = parts(torch.randn(6, 8), 2, 0)
    with pytest.raises(CompileError, match="`w` of `policy` lacks 24 elements"):
        dict(Arriving("policy", [put_buckets([first], transport)]))
    (bucket,) = put_buckets([first], transport)  # few bytes: not in the object store
    (piece,) = pickle.loads(bucket)
    changed = replace(piece, checksum=piece.checksum + 1)
    with pytest.raises(CompileError, match="changed on its way"):
        dict(Arriving("policy", [[ray.put([changed])]]))
