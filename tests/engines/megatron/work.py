"""What processes of a crew do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlinf_graph.ir import packed
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.nodes.engine import Shard
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.registry import Member
from tests.engines.megatron.small import (
    LOSSES,
    OPTIMIZER,
    definition,
    micro_batches,
    rollouts,
)

if TYPE_CHECKING:
    from rlinf_graph.engines.megatron.engine import MegatronEngine


def make(
    path: Path,
    parallel: dict[str, Any],
    head: str = "lm",
    dtype: str = "float32",
    trainable: bool = True,
    recompute: bool = False,
) -> MegatronEngine:
    from rlinf_graph.engines.megatron.engine import MegatronEngine  # not where it is missing

    settings = NodePlan(engine="megatron", parallel=Parallel(**parallel), recompute=recompute)
    member = Member(int(os.environ["RANK"]), settings)
    return MegatronEngine(
        definition(path, head), seed=0, device="cpu", dtype=dtype, trainable=trainable,
        member=member,
    )  # fmt: skip


@dataclass
class Report:
    """Of one process."""

    dp: int
    said: Tensor
    gradients: list[Shard]
    losses: dict[str, float]
    weight: float
    norm: float
    shards: list[Shard]


def train(path: Path, parallel: dict[str, Any], options: dict[str, Any], steps: int) -> Report:
    """Score samples, take a number of optimizer steps, and say what came of it."""
    engine = make(path, parallel, **options)
    samples = rollouts()
    replicas = Parallel(**parallel).dp
    dp = int(os.environ["RANK"]) * replicas // int(os.environ["WORLD_SIZE"])
    mine = packed.select(samples, range(dp, len(samples), replicas))
    head = options.get("head", "lm")
    said = engine.logprobs(mine) if head == "lm" else engine.values(mine)
    report = Report(dp, said, [], {}, 0.0, 0.0, [])
    for step in range(steps):
        metrics = Metrics()
        batches = micro_batches(rollouts(seed=step), dp, replicas)
        weight = engine.accumulate(batches, LOSSES[head], metrics)
        if step == 0:
            report.losses, report.weight = metrics.values(), weight
            report.gradients = summed_gradients(engine)
            engine.accumulate(batches, LOSSES[head], Metrics())
        metrics = Metrics()
        engine.optimizer_step(OPTIMIZER, weight, metrics)
        report.norm = report.norm or metrics.values()["train/grad_norm"]
    report.shards = list(engine.shards())
    return report


def summed_gradients(engine: MegatronEngine) -> list[Shard]:
    """Of all replicas, by the names of transformers; forgets them."""
    training, weights = engine._training, engine._weights
    assert training is not None
    held = training.gradients()
    training.reduction.sum_gradients(held)
    made = [
        Shard(piece.name, piece.shape, piece.offsets, piece.read(held[name]).clone())
        for name in held
        for piece in weights._pieces[name]
    ]
    training._forget()
    return made


def save(path: Path, parallel: dict[str, Any], options: dict[str, Any], out: Path) -> list[Shard]:
    """Load a checkpoint, write it again, and give this process's shards."""
    engine = make(path, parallel, trainable=False, **options)
    replica = int(os.environ["RANK"]) * engine._part.parallel.dp // int(os.environ["WORLD_SIZE"])
    engine.save(out.with_name(f"{out.name}-{replica}"))
    return [Shard(s.name, s.shape, s.offsets, s.values.clone()) for s in engine.shards()]


def resume(path: Path, parallel: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What a state and a way over the host lose, of two more steps; and what a wrong one says."""
    replicas = Parallel(**parallel).dp
    dp = int(os.environ["RANK"]) * replicas // int(os.environ["WORLD_SIZE"])

    def advance(engine: MegatronEngine, first: int) -> dict[str, Tensor]:
        for step in range(first, first + 2):
            batches = micro_batches(rollouts(seed=step), dp, replicas)
            weight = engine.accumulate(batches, LOSSES["lm"], Metrics())
            engine.optimizer_step(OPTIMIZER, weight, Metrics())
        return {s.name: s.values.clone() for s in engine.shards()}

    one, other = make(path, parallel, **options), make(path, parallel, **options)
    before = advance(one, 0)
    state = one.state()
    expected = advance(one, 2)
    wrong = {**state, "weights": dict(list(state["weights"].items())[1:])}
    refusal = ""
    try:
        other.load_state(wrong)
    except CompileError as error:
        refusal = str(error)
    other.load_state(state)
    other.offload()
    other.load()
    found = advance(other, 2)
    return {
        "lost": max(apart(found[name], w) for name, w in expected.items()),
        "moved": max(apart(before[name], w) for name, w in expected.items()),
        "refusal": refusal,
    }


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def update(path: Path, parallel: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Log-probabilities after an update from whole weights."""
    engine = make(path, parallel)
    engine.update_weights(iter(weights.items()), 3)
    assert engine.version == 3
    return engine.logprobs(rollouts())


def said(path: Path, parallel: dict[str, Any], options: dict[str, Any]) -> str:
    """The diagnostic of an engine that is refused."""
    try:
        make(path, parallel, **options)
    except CompileError as error:
        return str(error)
    return "nothing"
