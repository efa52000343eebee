"""Named served ports: refreshed references and exponential averages, the same in every plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlinf_graph.backends.engines import Engines, Kept
from rlinf_graph.backends.local import run as local
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_module, pipelines_of
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.position import Position
from rlinf_graph.ir.program import Await, unroll
from tests.backends.local.test_plans import two_cores

FILE = Path(__file__).parents[2] / "plans" / "served.py"
ITERATIONS = 6
Weights = dict[str, torch.Tensor]


def leaf(node: str, devices: str) -> dict[str, Any]:
    return {"kind": "node", "node": node, "devices": devices}


def turn(*parts: dict[str, Any], per: str = "iteration") -> dict[str, Any]:
    return {"kind": "turn", "per": per, "parts": list(parts)}


WATCH = "watch policy reference"
PLANS: dict[str, dict[str, Any]] = {
    "collocated": {
        "placement": turn(
            leaf("rollout policy", "0-1"),
            leaf("logprobs reference", "0-1"),
            leaf(WATCH, "0"),
            leaf("train policy", "0-1"),
        ),
        "nodes": {
            "rollout policy": {"parallel": {"dp": 2}},
            "logprobs reference": {"parallel": {"dp": 2}, "resident": False},
            "train policy": {"parallel": {"dp": 2}, "micro_batch": 4},
        },
    },
    "disaggregated": {
        "placement": {
            "kind": "split",
            "parts": [
                turn(leaf("rollout policy", "0"), leaf(WATCH, "0")),
                turn(leaf("logprobs reference", "1"), leaf("train policy", "1")),
            ],
        },
        "nodes": {"rollout policy": {"chunks": 4}, "train policy": {"micro_batch": 8}},
    },
}


def prepared(mode: str, folder: Path, **parameters: Any) -> tuple[Compiled, Any]:
    """The compiled pipeline, and what its node `watch` sees."""
    module = load_module(FILE)
    pipeline = pipelines_of(module)["moving_reference"]
    named = {"file": str(FILE), "name": "moving_reference"}
    plan = Plan.model_validate({"pipeline": named, "mode": mode, **PLANS[mode]})
    ready = compile_pipeline(pipeline, two_cores(folder), plan=plan, parameters=parameters)
    return ready, module.seen


def carried_out(mode: str, folder: Path, **parameters: Any) -> tuple[Any, list[IterationRecord]]:
    ready, seen = prepared(mode, folder, **parameters)
    records: list[IterationRecord] = []
    local.run(
        ready.program, ready.graph, ready.plan, ready.cluster,
        iterations=ITERATIONS, seed=3, report=records.append,
    )  # fmt: skip
    return seen, sorted(records, key=lambda r: r.iteration)


def worst(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("mode", PLANS)
def test_a_refreshed_reference_has_the_weights_of_every_second_iteration(
    mode: str, tmp_path: Path
) -> None:
    seen, _ = carried_out(mode, tmp_path, every=2)
    for iteration in range(ITERATIONS):
        delivered = seen["trained"][iteration // 2 * 2]
        assert worst(seen["reference"][iteration], delivered) == 0
    assert worst(seen["trained"][2], seen["trained"][3]) > 1e-4


@pytest.mark.parametrize("mode", PLANS)
@pytest.mark.parametrize("every", [1, 2])
def test_an_average_follows_its_recurrence(mode: str, every: int, tmp_path: Path) -> None:
    seen, _ = carried_out(mode, tmp_path, every=every, decay=0.75)
    own = seen["trained"][0]
    for iteration in range(ITERATIONS):
        if iteration and iteration % every == 0:
            new = seen["trained"][iteration]
            own = {name: 0.75 * own[name] + 0.25 * new[name] for name in own}
        assert worst(seen["reference"][iteration], own) <= 1e-12
    assert worst(own, seen["trained"][ITERATIONS - 1]) > 1e-4


def test_plans_agree_and_the_coefficient_adapts(tmp_path: Path) -> None:
    # AdamW divides by what a gradient is expected to be: where that is rounding, it would grow.
    small = {"decay": 0.5, "lr": 1e-3, "eps": 1e-3}
    one, ones = carried_out("collocated", tmp_path, **small)
    other, others = carried_out("disaggregated", tmp_path, **small)
    for port in ("trained", "reference"):
        assert max(worst(one[port][i], other[port][i]) for i in range(ITERATIONS)) <= 1e-9
    assert worst(one["reference"][1], one["reference"][2]) > 1e-4
    found = [r.metrics["kl/coefficient"] for r in ones]
    assert found == pytest.approx([r.metrics["kl/coefficient"] for r in others], abs=1e-9)
    assert found[0] == 0.05
    for before, after, record in zip(found, found[1:], ones, strict=False):
        error = max(-0.2, min(0.2, record.metrics["kl/per_sample"] / 0.01 - 1))
        assert after == pytest.approx(before * (1 + error * 32 / 320))
    assert len(set(found)) > 2


def test_an_average_of_narrow_weights_does_not_stand_still(tmp_path: Path) -> None:
    """A hundredth of a tenth of a weight is less than half of bfloat16's spacing."""
    ready, _ = prepared("disaggregated", tmp_path, every=1, decay=0.99)
    narrow = tuple(replace(model, dtype="bfloat16") for model in ready.graph.models)
    group = ready.program.group("logprobs reference")
    engines = Engines(
        replace(ready.graph, models=narrow), ready.plan, ready.cluster, [(group, 0)],
        seed=0, initial={},
    )  # fmt: skip
    listed = [instruction for instruction, _at in unroll(group.body, Position(0, 0))]
    awaited = next(i for i in listed if isinstance(i, Await))
    first = {k: v.float() for k, v in engines.of(group, 0)["model"].weights().items()}
    for iteration in range(1, 301):
        assert engines.due(group, 0, awaited, iteration) == [iteration]
        new = [(name, value * 1.1) for name, value in first.items()]
        engines.adopt(group, 0, awaited, iteration, new)
    assert engines.due(group, 0, awaited, 300) == []
    moved = 1 + 0.1 * (1 - 0.99**300)
    held = engines.of(group, 0)["model"].weights()
    for name, value in first.items():
        assert held[name].dtype == torch.bfloat16
        torch.testing.assert_close(held[name].float(), value * moved, rtol=0.01, atol=0)


def test_versions_that_a_rare_delivery_needs_are_kept_and_no_others(tmp_path: Path) -> None:
    ready, _ = prepared("disaggregated", tmp_path, every=50)
    kept, held = Kept.of(ready.graph, ready.plan), list[int]()
    for newest in range(1, 130):
        held.append(newest)
        held = [v for v in held if v not in kept.past("policy", held, newest)]
        for reader in range(max(0, newest - 1), newest + 1):
            assert reader // 50 * 50 in (0, *held)
        assert len(held) <= 5


def test_who_shares_an_engine_with_one_that_is_interrupted_takes_its_version_back(
    tmp_path: Path,
) -> None:
    ready, _ = prepared("disaggregated", tmp_path, every=1)
    group = ready.program.group("rollout policy")
    engines = Engines(ready.graph, ready.plan, ready.cluster, [(group, 0)], seed=0, initial={})
    interrupted = Await("policy", group.name, 1, "broadcast", interrupt=True)
    other = replace(interrupted, interrupt=False)
    first = {k: v.clone() for k, v in engines.of(group, 0)["policy"].weights().items()}
    assert engines.due(group, 0, interrupted, 1) == engines.due(group, 0, other, 1) == []
    engines.adopt(group, 0, interrupted, 1, [(name, value + 1) for name, value in first.items()])
    assert engines.due(group, 0, interrupted, 1) == []
    assert engines.due(group, 0, other, 1) == [0], "all replicas are to be at the same version"
    engines.adopt(group, 0, other, 0, first.items())
    assert worst(engines.of(group, 0)["policy"].weights(), first) == 0
    assert engines.due(group, 0, interrupted, 2) == engines.due(group, 0, other, 2) == [1]


def test_two_readers_that_share_an_engine_take_a_version_once(tmp_path: Path) -> None:
    ready, _ = prepared("disaggregated", tmp_path, every=1, decay=0.5)
    group = ready.program.group("logprobs reference")
    engines = Engines(ready.graph, ready.plan, ready.cluster, [(group, 0)], seed=0, initial={})
    awaited = Await("policy", group.name, 0, "copy", served="reference", decay=0.5)
    first = {k: v.clone() for k, v in engines.of(group, 0)["model"].weights().items()}
    new = [(name, value + 1) for name, value in first.items()]
    for _reader in range(2):
        engines.adopt(group, 0, awaited, 1, new)
    held = engines.of(group, 0)["model"].weights()
    assert worst(held, {name: value + 0.5 for name, value in first.items()}) <= 1e-12
    assert engines.due(group, 0, awaited, 3) == [2, 3]
    assert engines.due(group, 0, replace(awaited, every=2), 5) == [2, 4]
