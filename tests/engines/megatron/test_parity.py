"""Megatron says and learns what transformers does, on every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir import packed
from rlinf_graph.nodes.engine import Shard
from rlinf_graph.nodes.metric import Metrics
from tests.engines.megatron import small, work
from tests.engines.megatron.conftest import NEEDS
from tests.engines.megatron.crew import Crew

pytestmark = [NEEDS, pytest.mark.engines, pytest.mark.timeout(600)]

STEPS = 10
LAYOUTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {}),
    ("scaled", {}, {"recompute": True}),
    ("llama", {"tp": 2}, {}),
    ("qwen2", {"pp": 2}, {}),
    ("tied", {"tp": 2}, {}),
    ("tied", {"pp": 2}, {}),
    ("qwen3", {"dp": 2}, {}),
    ("qwen2", {"dp": 2, "shard": "optimizer"}, {}),
    ("qwen3", {"cp": 2}, {}),
    ("qwen2", {"pp": 2}, {"head": "value"}),
    ("llama", {"tp": 2}, {"head": "value", "recompute": True}),
    ("mixture", {"tp": 2}, {}),
    ("mixture", {"pp": 2}, {}),
    ("mixture", {"cp": 2, "ep": 2}, {}),
    ("mixture", {"dp": 2}, {}),
    ("qwen3", {"tp": 2, "pp": 2}, {}),
    ("tied", {"pp": 2, "dp": 2, "shard": "optimizer"}, {}),
    ("mixture", {"tp": 2, "dp": 2}, {}),
    ("qwen3", {"tp": 2, "cp": 2}, {"head": "value"}),
]


def name_of(value: Any) -> str | None:
    if isinstance(value, dict):
        return " ".join(f"{k} {v}" for k, v in value.items()) or "-"
    return None


@pytest.mark.parametrize(("family", "parallel", "options"), LAYOUTS, ids=name_of)
def test_training_is_that_of_the_torch_engine(
    crew: Crew,
    model: Callable[..., Path],
    family: str,
    parallel: dict[str, Any],
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    head = options.get("head", "lm")
    path = model(family) if head == "lm" else with_head(model(family), tmp_path / "critic")
    expected = Expected(path, head)
    world = 1
    for axis, degree in parallel.items():
        world *= degree if axis in ("tp", "pp", "cp", "dp") else 1
    reports: list[work.Report] = crew.run(world, work.train, path, parallel, options, STEPS)
    replicas = parallel.get("dp", 1)
    for report in reports:
        rows = range(report.dp, len(small.rollouts()), replicas)
        close(report.said, expected.said(rows), 1e-5)
    firsts = [next(r for r in reports if r.dp == dp) for dp in range(replicas)]
    assert sum(first.weight for first in firsts) == pytest.approx(expected.weight)
    if replicas == 1:
        assert firsts[0].losses == pytest.approx(expected.losses, abs=1e-5)
    for report in reports:
        for shard in report.gradients:
            whole = expected.gradients[shard.name] / expected.weight
            close(shard.values / expected.weight, cut(shard, whole), 1e-5)
        assert report.norm == pytest.approx(expected.norm, rel=1e-4)
    names = {shard.name for report in reports for shard in report.shards}
    assert names == set(expected.trained)
    for report in reports:
        for shard in report.shards:
            close(shard.values, cut(shard, expected.trained[shard.name]), 1e-4)


class Expected:
    """What the torch engine says and learns, by the names of checkpoints."""

    def __init__(self, path: Path, head: str, dtype: str = "float32") -> None:
        engine = TorchEngine(small.definition(path, head), seed=0, device="cpu", dtype=dtype,
                             trainable=True)  # fmt: skip
        self._said = {
            rows: engine.logprobs(picked) if head == "lm" else engine.values(picked)
            for rows in (range(8), range(0, 8, 2), range(1, 8, 2))
            for picked in [packed.select(small.rollouts(), rows)]
        }
        for step in range(STEPS):
            metrics = Metrics()
            batches = small.micro_batches(small.rollouts(seed=step))
            weight = engine.accumulate(batches, small.LOSSES[head], metrics)
            if step == 0:
                self.losses, self.weight = metrics.values(), weight
                held = {n: g.clone() for n, g in engine.gradients().items()}
                self.gradients = split_experts(held)
            metrics = Metrics()
            engine.optimizer_step(small.OPTIMIZER, weight, metrics)
            if step == 0:
                self.norm = metrics.values()["train/grad_norm"]
        self.trained = split_experts(engine.weights())

    def said(self, rows: range) -> Tensor:
        return self._said[rows]


def split_experts(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers holds all experts of a layer in one weight, and stores each by itself."""
    made: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(value):
                for part, each in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                    made[f"{name.removesuffix('gate_up_proj')}{expert}.{part}.weight"] = each
        elif name.endswith("experts.down_proj"):
            for expert, each in enumerate(value):
                made[f"{name.removesuffix('down_proj')}{expert}.down_proj.weight"] = each
        else:
            made[name] = value
    return made


def with_head(path: Path, out: Path) -> Path:
    """A critic whose head is not that of a new one."""
    engine = TorchEngine(small.definition(path, "value"), seed=0, device="cpu", dtype="float32",
                         trainable=False)  # fmt: skip
    draws = torch.Generator().manual_seed(3)
    engine.update_weights([("head.weight", torch.randn(1, 32, generator=draws) / 10)])
    engine.save(out)
    return out


def cut(shard: Shard, whole: Tensor) -> Tensor:
    assert tuple(whole.shape) == shard.shape
    spans = zip(shard.offsets, shard.values.shape, strict=True)
    return whole[tuple(slice(start, start + size) for start, size in spans)]


def close(found: Tensor, expected: Tensor, most: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=most)
