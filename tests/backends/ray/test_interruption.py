"""New weights in the middle of generation."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from rlinf_graph.backends.ray import run as on_ray
from rlinf_graph.backends.ray.interruption import Interrupted, News
from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.ir.program import Await
from rlinf_graph.nodes.engine import Engine, Key, Sampling
from rlinf_graph.nodes.execution import Execution, executing
from rlinf_graph.nodes.metric import Metrics
from tests.backends.ray.nearer import Nearer, until

ROOT = Path(__file__).parents[3]
KEY = Key(0, "rollout policy", 5)
SAMPLING = Sampling(samples=3, max_tokens=40)
AWAITED = Await("policy", "rollout policy", 1, "broadcast", every=2, interrupt=True)
Cores = Callable[..., Cluster]

pytestmark = pytest.mark.timeout(180)


class Stage:
    """A policy that is interrupted, and what publishes its weights."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.line = Nearer()
        self.engine = self.made(folder, 0)
        self.by_version = {0: self.made(folder, 0)} | {v: self.made(folder, v) for v in (1, 2, 4)}
        self.news = News(cast("Any", self.line), AWAITED)
        self.taken: list[int] = []
        self.delivered, self.fetched = list[bytes](), list[bytes]()
        monkeypatch.setattr(self.news, "_fetch", lambda members: self.fetched.append(members[0][0]))
        self.aborts, self.late = 0, False
        self.metrics = Metrics()
        self.interrupted = Interrupted(cast("Engine", self.engine), AWAITED, self.news, self._adopt)

    def made(self, folder: Path, seed: int) -> TorchEngine:
        model = ModelDef("policy", str(folder), "lm", "float64", "random")
        return TorchEngine(model, seed=seed, device="cpu", dtype="float64", trainable=False)

    def _adopt(self, awaited: Await, version: int) -> None:
        assert awaited is AWAITED
        self.taken.append(version)
        self.engine.update_weights(self.by_version[version].weights().items(), version)

    def publish_at(self, passes: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        """Publish versions in passes of the model, which go on when it has been aborted for them.

        That comes too `late` where nothing more is drawn.
        """
        forward, abort, taken = self.engine.model.forward, self.engine.abort, 0

        def aborted() -> None:
            self.aborts += 1
            assert self.fetched == self.delivered, "they are fetched before"
            if not self.late:
                abort()

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken in passes:
                version, before = passes[taken], self.aborts
                if version % AWAITED.every == 0:
                    self.delivered.append(b"%d" % version)
                self.line.publish(version)
                if version % AWAITED.every == 0:
                    assert until(lambda: self.aborts > before)
            return forward(*args, **options)

        monkeypatch.setattr(self.engine, "abort", aborted)
        monkeypatch.setattr(self.engine.model, "forward", counted)

    def generate(self, version: int = 0) -> Rollouts:
        texts = ("1+2=", "37+48=", "5=", "123+456=")
        index = torch.arange(len(texts))
        prompts = Prompts(index=index, group=index, prompts=list(texts), columns=[{}] * len(texts))
        with executing(Execution(metrics=self.metrics)):
            return self.interrupted.generate(prompts, SAMPLING, KEY, version)


def nobody_listens() -> bool:
    return not any(thread.name == "news" for thread in threading.enumerate())


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(ROOT / "tests" / "plans" / "decoder", monkeypatch)
    yield made
    made.news.close()
    assert until(nobody_listens)


def test_tokens_are_those_of_the_version_that_they_name(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.publish_at({4: 1, 6: 2, 9: 4}, monkeypatch)
    made = stage.generate()
    assert stage.taken == [2, 4], "1 is not delivered"
    assert sorted(made.versions.unique().tolist()) == [-1, 0, 2, 4]
    for version in (0, 2, 4):
        chosen = made.versions == version
        said = stage.by_version[version].logprobs(made)
        torch.testing.assert_close(made.logprobs[chosen], said[chosen], rtol=0, atol=1e-9)
    for row in made.versions.split(made.lengths.tolist()):
        own = row[row >= 0].tolist()
        assert own == sorted(own)
    assert (made.finished | (made.response_lengths == SAMPLING.max_tokens)).all()
    assert stage.metrics.values()["rollout/interruptions"] == 2


def test_what_has_come_before_is_taken_first(stage: Stage) -> None:
    stage.line.publish(2)
    assert until(lambda: stage.news.newest == 2)
    made = stage.generate()
    assert stage.taken == [2]
    assert sorted(made.versions.unique().tolist()) == [-1, 2]
    assert stage.metrics.values()["rollout/interruptions"] == 0
    assert sorted(stage.generate(version=2).versions.unique().tolist()) == [-1, 2]
    assert stage.taken == [2]


def test_what_comes_while_weights_are_taken_over(stage: Stage) -> None:
    """Taking over is slow: the next version is there before generation has begun."""
    adopt = stage.interrupted._adopt

    def slow(awaited: Await, version: int) -> None:
        adopt(awaited, version)
        if version == 2:
            stage.line.publish(4)
            assert until(lambda: stage.news.newest == 4)

    stage.interrupted._adopt = slow
    stage.line.publish(2)
    assert until(lambda: stage.news.newest == 2)
    made = stage.generate()
    assert stage.taken == [2, 4]
    assert sorted(made.versions.unique().tolist()) == [-1, 4]


def test_nothing_is_taken_when_all_has_been_said(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.late = True
    stage.publish_at({6: 2}, monkeypatch)
    made = stage.generate()
    assert stage.taken == []
    assert sorted(made.versions.unique().tolist()) == [-1, 0]


def test_a_run_that_fails_ends_the_listening(stage: Stage) -> None:
    stage.line.fail()
    assert until(nobody_listens)
    assert sorted(stage.generate().versions.unique().tolist()) == [-1, 0]


PIPELINE = """
from rlinf_graph import rl

policy = rl.Model("{model}", weights="random", dtype="float32")


def digits_right(answer: str, truth: str) -> float:
    return sum(a == b for a, b in zip(answer, truth, strict=False)) / len(truth)


@rl.pipeline
def small_grpo(interrupt: bool = True, max_staleness: int = 1, keep: int | None = None) -> None:
    prompts = rl.dataset("{data}", batch=4)
    rollouts = rl.rollout(policy, prompts, samples=4, max_tokens=200, lengths=200, keep=keep)
    advantages = rl.group_advantages(rl.verify(rollouts, digits_right))
    weights = rl.train(policy, rollouts, advantages, optimizer=rl.AdamW(lr=1e-3))
    rl.sync(weights, into=policy, max_staleness=max_staleness, interrupt=interrupt)
    rl.evaluate(policy, rl.dataset("{data}", batch=4), digits_right, max_tokens=8, every=1)
"""


def compiled(tmp_path: Path, cluster: Cluster, **parameters: Any) -> Compiled:
    """A policy that seldom ends a response: one token in 512 does."""
    model = shutil.copytree(ROOT / "tests" / "plans" / "decoder", tmp_path / "decoder")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    file = tmp_path / "pipeline.py"
    data = ROOT / "demo" / "arithmetic" / "train.jsonl"
    file.write_text(PIPELINE.format(model=model, data=data))
    pipeline, _ = load_pipeline(str(file))
    pins = {"rollout": "0", "train": "1"}
    return compile_pipeline(pipeline, cluster, pins=pins, parameters=parameters)


@pytest.mark.parametrize("hosted", [False, True])
def test_a_run_takes_weights_while_it_generates(
    hosted: bool, cores: Cores, tmp_path: Path, seats: dict[int, Seat]
) -> None:
    ready = compiled(tmp_path, cores())
    assert ready.plan.syncs["sync policy"].interrupt
    records: list[IterationRecord] = []
    on_ray.run(
        ready.program, ready.graph, ready.plan, ready.cluster, iterations=5, seed=3,
        report=records.append, placed=seats.update,
        pythons={"torch": sys.executable} if hosted else None,
    )  # fmt: skip
    samples = [sample for record in records for sample in record.samples]
    assert sum(record.metrics["rollout/interruptions"] for record in records) >= 1
    assert any(sample["version"] < sample["newest"] for sample in samples)
    for sample in samples:
        assert sample["iteration"] - 1 <= sample["version"] <= sample["newest"]
        assert sample["newest"] <= sample["iteration"]


def test_without_the_plans_word_nothing_is_interrupted(
    cores: Cores, tmp_path: Path, seats: dict[int, Seat]
) -> None:
    ready = compiled(tmp_path, cores(), interrupt=False)
    assert not ready.plan.syncs["sync policy"].interrupt
    records: list[IterationRecord] = []
    on_ray.run(
        ready.program, ready.graph, ready.plan, ready.cluster, iterations=3, seed=3,
        report=records.append, placed=seats.update,
    )  # fmt: skip
    assert [{s["newest"] for s in r.samples} for r in records] == [{0}, {0}, {1}]
    assert all("rollout/interruptions" not in record.metrics for record in records)
