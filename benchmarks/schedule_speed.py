"""How long the search takes: real pipelines, and ones made to grow in devices and nodes.

    python benchmarks/schedule_speed.py [--rounds N] [--only WORD] [--json OUT]

Each search is a fresh one, in a process that has imported everything; the median of the rounds is
shown beside the limit that the project has set itself. `gap` is what is not proved. Growing
pipelines are chains: a rollout, scores by more and more models, training; once with the degrees of
parallelism of every node searched and once with all of them given as 1 (data parallelism alone).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rlinf_graph import rl
from rlinf_graph.compiler.compile import compile_graph
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.graph import Graph


@dataclass(frozen=True)
class Case:
    """One search, and the seconds it may take."""

    name: str
    graph: Callable[[], Graph]
    cluster: str
    limit_s: float | None = None
    pins: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Result:
    """What one search came to."""

    name: str
    cluster: str
    search_s: float
    limit_s: float | None
    gap: float
    plans: int
    simulated: int
    mode: str
    seconds: float
    devices: int


def correct(answer: str, truth: str) -> float:
    """A reward."""
    return float(answer == truth)


def grpo(
    name: str = "Qwen/Qwen2.5-7B-Instruct", batch: int = 512, tokens: int = 4096, late: int = 1
) -> Graph:
    """GRPO with a reference."""
    policy = rl.Model(name)
    reference = policy.frozen()

    @rl.pipeline
    def grpo() -> None:
        prompts = rl.dataset("openai/gsm8k", batch=batch)
        rollouts = rl.rollout(policy, prompts, samples=8, max_tokens=tokens)
        rewards = rl.verify(rollouts, correct)
        before = rl.logprobs(reference, rollouts)
        advantages = rl.group_advantages(rewards)
        loss = rl.GRPOLoss(kl=1e-3)
        weights = rl.train(
            policy, rollouts, advantages, reference=before, loss=loss, minibatch=batch * 2
        )
        rl.sync(weights, into=policy, max_staleness=late)

    return grpo.build()


def ppo() -> Graph:
    """PPO with a policy and a reference of 72B, a critic of 7B and a reward model of 1.5B."""
    policy = rl.Model("Qwen/Qwen2.5-72B-Instruct")
    reference = policy.frozen()
    critic = rl.Model("Qwen/Qwen2.5-7B-Instruct", head="value")
    judge = rl.Model("Qwen/Qwen2.5-1.5B-Instruct", head="score").frozen()

    @rl.pipeline
    def ppo() -> None:
        prompts = rl.dataset("openai/gsm8k", batch=1024)
        rollouts = rl.rollout(policy, prompts, max_tokens=2048)
        rewards = rl.score(judge, rollouts)
        before = rl.logprobs(reference, rollouts)
        penalized = rl.kl_penalty(rewards, rollouts, before, beta=0.05)
        values = rl.values(critic, rollouts)
        advantages, returns = rl.gae(penalized, values)
        acted = rl.train(policy, rollouts, advantages, loss=rl.PPOLoss(), minibatch=256)
        judged = rl.train(critic, rollouts, returns, loss=rl.ValueLoss(), minibatch=256)
        rl.sync(acted, into=policy)
        rl.sync(judged, into=critic)

    return ppo.build()


@rl.node
def added(first: rl.Rewards, second: rl.Rewards) -> rl.Rewards:
    """The sum of two rewards."""
    return first.replace(values=first.values + second.values)


def chain(nodes: int) -> Graph:
    """A rollout, `nodes - 2` reward models and training."""
    policy = rl.Model("Qwen/Qwen2.5-7B-Instruct")
    sizes = ("0.5B", "1.5B", "3B", "7B", "14B")
    judges = [
        rl.Model(f"Qwen/Qwen2.5-{sizes[i % len(sizes)]}-Instruct", head="score", name=f"judge {i}")
        for i in range(nodes - 2)
    ]

    @rl.pipeline
    def chain() -> None:
        prompts = rl.dataset("openai/gsm8k", batch=512)
        rollouts = rl.rollout(policy, prompts, samples=8, max_tokens=2048)
        total = rl.score(judges[0].frozen(), rollouts)
        for judge in judges[1:]:
            total = added(total, rl.score(judge.frozen(), rollouts))
        advantages = rl.group_advantages(total)
        weights = rl.train(policy, rollouts, advantages, minibatch=1024)
        rl.sync(weights, into=policy, max_staleness=1)

    return chain.build()


def embodied() -> Graph:
    """PPO of a vision-language-action model in simulators on the processors."""
    env = rl.Env("CartPole-v1", count=512)
    policy = rl.Model("mlp:4096x4096x4096", head="action", env=env)
    critic = rl.Model("mlp:4096x4096", head="value", env=env)

    @rl.pipeline
    def embodied() -> None:
        def interact(seen: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
            return rl.step(env, seen, rl.act(policy, seen))

        start = rl.state(rl.reset(env))
        last, episode = rl.unroll(interact, start=start, length=64)
        rl.carry(last, into=start)
        advantages, returns = rl.gae(episode.rewards, rl.values(critic, episode))
        samples, targets, worths = rl.each_step(episode, advantages, returns)
        acted = rl.train(policy, samples, targets, loss=rl.PPOLoss(), epochs=4, minibatch=4096)
        judged = rl.train(critic, samples, worths, loss=rl.ValueLoss(), epochs=4, minibatch=4096)
        rl.sync(acted, into=policy)
        rl.sync(judged, into=critic)

    return embodied.build()


BIG = "Qwen/Qwen3-235B-A22B"
ONE = "tp 1 pp 1 cp 1 ep 1"

REAL = [
    Case("grpo 7B", grpo, "8xH100", 0.2),
    Case("grpo 7B", grpo, "64xH100", 0.2),
    Case("grpo 7B", grpo, "1024xH100", 0.5),
    Case("grpo 7B", grpo, "10000xH100", 3.0),
    Case("ppo 72B + 72B + 7B + 1.5B", ppo, "256xH100", 2.0),
    Case("grpo 235B-A22B", lambda: grpo(BIG, batch=256, tokens=8192), "256xH100"),
    Case("grpo 32B, two types", lambda: grpo("Qwen/Qwen3-32B", batch=256), "32xH20+16xH100"),
    Case("embodied, simulators on cpu", embodied, "8xH100"),
]


def grown(nodes: int, devices: int, *, parallel: bool) -> Case:
    """A chain of nodes on devices."""
    graph = chain(nodes)
    names = [node.name for node in graph.nodes if node.type in ("rollout", "score", "train")]
    pins = {} if parallel else dict.fromkeys(names, ONE)
    name = f"chain of {nodes}, {'all degrees' if parallel else 'data parallel'}"
    return Case(name, lambda: graph, f"{devices}xH100", None, pins)


def solve(case: Case, rounds: int) -> Result:
    """Search afresh, a few times."""
    times: list[float] = []
    for _ in range(rounds):
        graph, cluster = case.graph(), load_cluster(case.cluster)
        start = time.perf_counter()
        found = compile_graph(graph, cluster, pins=case.pins).found
        times.append(time.perf_counter() - start)
        if found is None:
            raise ValueError("nothing was searched")
    used = {d for leaf in found.best.plan.leaves() for d in leaf.devices}
    return Result(
        name=case.name,
        cluster=case.cluster,
        search_s=statistics.median(times),
        limit_s=case.limit_s,
        gap=found.gap,
        plans=found.plans,
        simulated=found.simulated,
        mode=found.best.plan.mode,
        seconds=found.best.seconds,
        devices=len(used),
    )


def line(made: Result) -> str:
    """One row of the table."""
    limit = f"≤ {made.limit_s:g}" if made.limit_s else ""
    gap = "proved" if made.gap <= 1e-9 else f"{100 * made.gap:.2g} %"
    return (
        f"{made.name:34}{made.cluster:>16}{made.search_s:9.3f} s {limit:>6}  {gap:>9}"
        f"{made.plans:9,} plans{made.simulated:4} simulated  {made.mode}, {made.devices} devices, "
        f"{made.seconds:.4g} s"
    )


def main() -> None:
    """Search, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = list(REAL)
    for parallel in (False, True):
        cases += [grown(4, n, parallel=parallel) for n in (8, 64, 512, 1024, 4096, 10_000)]
        most = (3, 5, 6, 8) if parallel else (3, 5, 6, 8, 10, 12)
        cases += [grown(n, 64, parallel=parallel) for n in most]
    results: list[Result] = []
    for case in cases:
        if options.only in f"{case.name} {case.cluster}":
            results.append(solve(case, options.rounds))
            print(line(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
