"""Plans of which an expert knows the answer, each with its reason; and what must not matter."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph import rl
from rlinf_graph.compiler.compile import Compiled, compile_graph
from rlinf_graph.compiler.explain import explain
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import show_devices

CASES = sorted((Path(__file__).parent / "experts").glob("*.toml"))
ROOT = Path(__file__).parents[3]


def grpo(model: str, batch: int, max_tokens: int, max_staleness: int, kl: float) -> Graph:
    policy = rl.Model(model)
    reference = policy.frozen()

    @rl.pipeline
    def grpo() -> None:
        prompts = rl.dataset("openai/gsm8k", batch=batch)
        rollouts = rl.rollout(policy, prompts, samples=8, max_tokens=max_tokens)
        rewards = rl.verify(rollouts, lambda answer, truth: float(answer == truth))
        before = rl.logprobs(reference, rollouts)
        advantages = rl.group_advantages(rewards)
        weights = rl.train(
            policy, rollouts, advantages, reference=before, loss=rl.GRPOLoss(kl=kl),
            minibatch=2 * batch,
        )  # fmt: skip
        rl.sync(weights, into=policy, max_staleness=max_staleness)

    return grpo.build()


def planned(case: dict[str, Any], **more: Any) -> Compiled:
    names = ("model", "batch", "max_tokens", "max_staleness", "kl")
    return compile_graph(grpo(**{n: case[n] for n in names}), load_cluster(case["cluster"]), **more)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_the_plan_is_what_an_expert_expects(file: Path) -> None:
    case = tomllib.loads(file.read_text())
    plan, expected = planned(case).plan, case["expected"]
    assert plan.mode == expected["mode"]
    assert plan.syncs["sync policy"].staleness == expected["staleness"]
    assert {n: show_devices(plan.devices(n)) for n in expected["devices"]} == expected["devices"]
    assert [n for n, s in plan.nodes.items() if not s.resident] == expected["offloaded"]
    assert plan.estimate
    assert plan.estimate.proved


def balanced() -> dict[str, Any]:
    return tomllib.loads((CASES[0].parent / "balanced_pair.toml").read_text())


def test_which_devices_have_which_numbers_changes_nothing() -> None:
    one = planned(balanced(), pins={"rollout": "0-7", "train": "8-15"}).plan
    other = planned(balanced(), pins={"rollout": "8-15", "train": "0-7"}).plan
    assert one.estimate
    assert other.estimate
    assert one.estimate.iteration_s == pytest.approx(other.estimate.iteration_s, rel=1e-9)
    assert one.nodes == other.nodes


def test_a_resource_that_is_infinitely_fast_drops_out_of_the_bottleneck() -> None:
    case = tomllib.loads((CASES[0].parent / "cheap_and_dear.toml").read_text())
    slow = explain(planned(case)).bottleneck
    assert "rollout policy" in [name for name, _seconds in slow.busiest.nodes]
    cluster = load_cluster(case["cluster"])
    first, second = cluster.groups
    fast = replace(
        first.device,
        flops=tuple((dtype, flops * 1e6) for dtype, flops in first.device.flops),
        memory_bandwidth=first.device.memory_bandwidth * 1e6,
    )
    names = ("model", "batch", "max_tokens", "max_staleness", "kl")
    graph = grpo(**{n: case[n] for n in names})
    better = replace(cluster, groups=(replace(first, device=fast), second))
    pins = {"rollout": "0-15", "train": "16-23"}
    found = explain(compile_graph(graph, better, pins=pins)).bottleneck
    assert [name for name, _seconds in found.busiest.nodes] == ["train policy"]


def test_hash_seeds_change_nothing() -> None:
    command = [str(Path(sys.executable).with_name("rlinf-graph")), "compile"]
    target = ["pipelines/grpo_gsm8k.py", "--cluster", "16xH100", "-o", "/dev/stdout"]
    plans = {
        subprocess.run(
            [*command, *target], check=True, capture_output=True, text=True, timeout=100, cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(plans) == 1
    assert "placement" in plans.pop()
