"""Milliseconds that an iteration of empty nodes takes: what the runtime itself costs.

    python benchmarks/overhead.py [--quick] [--rounds N] [--json OUT]

The graph is GRPO's (dataset, rollout, verify, reference log-probabilities, advantages, train, sync)
with an engine that does nothing, on one processor core (all nodes take turns) and on two (rollout
beside the others), in 1, 8 and 64 micro-batches. Iterations are timed in one run, the first few
left out. Beside it, interleaved: the same nodes as calls of Ray actors, one for each node, by a
loop that hands each micro-batch's references on, as a hand-written controller does; and the
`local` backend, which has no processes at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from rlinf_graph import rl
from rlinf_graph.backends.local import run as local
from rlinf_graph.backends.ray import run as on_ray
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.ir import plan as plans

ROOT = Path(__file__).parents[1]
PROMPTS, SAMPLES = 64, 2
MICRO_BATCHES = (1, 8, 64)
WARM = 5
"""Iterations at the beginning of a run that are not counted."""
REPETITIONS = 3
"""That follow one another in a run: to start one takes seconds."""
TARGET_MS = 10.0
"""Of an iteration with 8 micro-batches."""


@rl.node(unit=rl.SAMPLE)
def empty_rewards(rollouts: rl.Rollouts) -> rl.Rewards:
    """In the place of verify."""
    values = torch.zeros(len(rollouts), dtype=torch.float64)
    return rl.Rewards(index=rollouts.index, group=rollouts.group, values=values)


@rl.node(unit=rl.GROUP)
def empty_advantages(rewards: rl.Rewards) -> rl.Advantages:
    """In the place of the group's advantages."""
    return rl.Advantages(index=rewards.index, group=rewards.group, values=rewards.values)


policy = rl.Model(str(ROOT / "tests" / "plans" / "decoder"), weights="random")
reference = policy.frozen()


@rl.pipeline
def empty_grpo(data: str = "") -> None:
    """GRPO."""
    prompts = rl.dataset(data, batch=PROMPTS)
    rollouts = rl.rollout(policy, prompts, samples=SAMPLES, max_tokens=1, lengths=1)
    rewards = empty_rewards(rollouts)
    ref_logprobs = rl.logprobs(reference, rollouts)
    advantages = empty_advantages(rewards)
    loss = rl.GRPOLoss(kl=1e-2)
    weights = rl.train(policy, rollouts, advantages, reference=ref_logprobs, loss=loss)
    rl.sync(weights, into=policy)


def plan_of(cores: int, micro_batches: int) -> plans.Plan:
    """All nodes on one core, or rollout on core 0 and the others on core 1."""
    device = "0" if cores == 1 else "1"
    names = ("logprobs reference", "train policy")
    rollout: Any = {"kind": "node", "node": "rollout policy", "devices": "0"}
    others = [{"kind": "node", "node": name, "devices": device} for name in names]
    turn: dict[str, Any] = {"kind": "turn", "per": "iteration", "parts": others}
    if cores == 1:
        placement = {"kind": "turn", "per": "iteration", "parts": [rollout, *others]}
    else:
        placement = {"kind": "split", "parts": [rollout, turn]}
    common = {"engine": "empty", "chunks": micro_batches}
    nodes: Any = {name: common for name in ("rollout policy", "logprobs reference")}
    samples = PROMPTS * SAMPLES // micro_batches
    nodes["train policy"] = {"engine": "empty", "micro_batch": samples}
    made: Any = {
        "format": 1, "mode": "collocated" if cores == 1 else "disaggregated",
        "pipeline": {"file": "overhead.py", "name": "empty_grpo"},
        "placement": placement, "nodes": nodes,
        "syncs": {"sync policy": {"method": "broadcast", "staleness": 0}},
    }  # fmt: skip
    return plans.loads(json.dumps(made), "overhead")


@dataclass
class Result:
    """Milliseconds of an iteration in each repetition."""

    way: str
    micro_batches: int
    milliseconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Milliseconds."""
        return statistics.median(self.milliseconds)


def compiled(folder: Path, cores: int, micro_batches: int) -> Compiled:
    """The empty pipeline with a plan."""
    data = folder / "data.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": "1", "answer": "2"}) for _ in range(PROMPTS)))
    cluster = folder / f"{cores}.toml"
    cluster.write_text(
        f'name = "{cores} cores"\n[[node_group]]\nname = "cpu"\ndevice = "cpu-core"\nnodes = 1\n'
        f"devices_per_node = {cores}\ncpus = 2\nmemory_gb = 4\n"
    )
    plan = plan_of(cores, micro_batches)
    return compile_pipeline(empty_grpo, str(cluster), plan=plan, parameters={"data": str(data)})


def iterations_of(ready: Compiled, runner: Any, count: int) -> list[float]:
    """Milliseconds of an iteration, of each repetition in one run."""
    ends: list[float] = []
    total = WARM + REPETITIONS * count
    runner.run(
        ready.program, ready.graph, ready.plan, ready.cluster, iterations=total,
        report=lambda record: ends.append(time.perf_counter() - record.age),
    )  # fmt: skip
    marks = ends[WARM - 1 :: count]
    return [1000 * (end - begin) / count for begin, end in pairwise(marks)]


@ray.remote(num_cpus=0)
class Node:
    """A node of the hand-written loop."""

    def run(self, *batches: Any) -> Any:
        """Nothing, of the first batch."""
        return batches[0] if batches else np.zeros(PROMPTS)


class Loop:
    """GRPO by hand: an actor for each node, and a controller that calls them."""

    NAMES = ("dataset", "rollout", "verify", "logprobs", "advantages", "train")

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {name: Node.remote() for name in self.NAMES}
        ray.get([node.run.remote() for node in self.nodes.values()])

    def iteration(self, micro_batches: int) -> None:
        """References go from call to call; the controller waits for the last."""
        call = {name: node.run.remote for name, node in self.nodes.items()}
        trained: list[Any] = []
        for _ in range(micro_batches):
            rollouts = call["rollout"](call["dataset"]())
            advantages = call["advantages"](call["verify"](rollouts))
            trained.append(call["train"](rollouts, advantages, call["logprobs"](rollouts)))
        ray.get(trained)

    def milliseconds(self, micro_batches: int, count: int) -> list[float]:
        """Of an iteration, of each repetition."""
        for _ in range(WARM):
            self.iteration(micro_batches)
        marks = [time.perf_counter()]
        for _ in range(REPETITIONS):
            for _ in range(count):
                self.iteration(micro_batches)
            marks.append(time.perf_counter())
        return [1000 * (end - begin) / count for begin, end in pairwise(marks)]

    def stop(self) -> None:
        """End the actors."""
        for node in self.nodes.values():
            ray.kill(node)


def measure(folder: Path, rounds: int, count: int, sizes: Iterable[int]) -> list[Result]:
    """All ways for each number of micro-batches, one after the other in each round."""
    results: list[Result] = []
    for size in sizes:
        one, two = (compiled(folder, cores, size) for cores in (1, 2))
        ways: Mapping[str, Any] = {
            "ray, 1 core": lambda ready=one: iterations_of(ready, on_ray, count),
            "ray, 2 cores": lambda ready=two: iterations_of(ready, on_ray, count),
            "local": lambda ready=one: iterations_of(ready, local, count),
        }
        by_way = {way: Result(way, size) for way in [*ways, "actor calls"]}
        loop = Loop()
        for _ in range(rounds):
            for way, run in ways.items():
                by_way[way].milliseconds += run()
            by_way["actor calls"].milliseconds += loop.milliseconds(size, count)
        loop.stop()
        results += by_way.values()
        for result in by_way.values():
            low, high = min(result.milliseconds), max(result.milliseconds)
            print(f"{size:>14}  {result.way:<14}{result.median:>9.2f}{low:>9.2f}{high:>9.2f}")
    return results


def ratios(results: list[Result]) -> dict[str, float]:
    """Each way's median over that of actor calls, by micro-batches; and the target's share."""
    median = {(r.way, r.micro_batches): r.median for r in results}
    found = {
        f"{way}, {size} micro-batches / actor calls": value / median["actor calls", size]
        for (way, size), value in median.items()
        if way != "actor calls"
    }
    for way in ("ray, 1 core", "ray, 2 cores"):
        if (way, 8) in median:
            found[f"{way}, 8 micro-batches / {TARGET_MS:g} ms"] = median[way, 8] / TARGET_MS
    return found


@contextlib.contextmanager
def registered() -> Iterator[Path]:
    """A folder for files, on the path, in which the engine is registered as an installed one is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        info = folder / "empty_engine-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: empty-engine\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            "[rlinf_graph.engines]\nempty = empty_engine.engine:EmptyEngine\n"
        )
        places = [name, str(Path(__file__).parent), str(ROOT)]
        sys.path[:0] = places
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [before])])
        os.environ["OMP_NUM_THREADS"] = "1"
        yield folder


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="end within 45 s")
    parser.add_argument("--rounds", type=int, help="5; 2 with --quick")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    count, sizes, rounds = (20, (8,), 2) if arguments.quick else (30, MICRO_BATCHES, 5)
    print(f"{'micro-batches':>14}  {'way':<14}{'ms':>9}{'lowest':>9}{'highest':>9}")
    with registered() as folder:
        options: Any = {"include_dashboard": False, "log_to_driver": False}
        ray.init(address="local", num_cpus=8, logging_level=logging.ERROR, **options)
        try:
            results = measure(folder, arguments.rounds or rounds, count, sizes)
        finally:
            ray.shutdown()
    found = ratios(results)
    print(*(f"{name:<50}{value:>8.2f}" for name, value in found.items()), sep="\n")
    if arguments.json:
        made = [asdict(result) | {"median": result.median} for result in results]
        text = json.dumps({"results": made, "ratios": found, "target_ms": TARGET_MS}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
