"""Environment steps a second of PPO here and in Stable-Baselines3, with the same settings.

python benchmarks/ppo_vs_sb3.py [--quick] [--rounds N] [--json OUT]

Both train an actor and a critic with two hidden layers of 64, tanh, on the same number of copies,
steps, epochs and minibatches, with the same learning rate, discount, clipping and threads. Rounds
alternate; the first iterations of each round are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from rlinf_graph import rl
from rlinf_graph.cli.api import compile_pipeline, run_compiled


@dataclass(frozen=True)
class Settings:
    """Of both sides."""

    env: str
    copies: int
    steps: int
    minibatch: int
    epochs: int
    discount: float
    trace: float
    lr: float
    iterations: int


SETTINGS = (
    Settings("CartPole-v1", 8, 128, 256, 10, 0.98, 0.8, 1e-3, 10),
    Settings("CartPole-v1", 64, 64, 1024, 10, 0.98, 0.8, 1e-3, 5),
    Settings("HalfCheetah-v5", 8, 128, 256, 10, 0.99, 0.95, 3e-4, 10),
    Settings("HalfCheetah-v5", 16, 128, 512, 10, 0.99, 0.95, 3e-4, 5),
)
WARM = 2
"""Iterations of a round that are not counted."""


def pipeline_of(s: Settings) -> rl.Pipeline:
    """PPO with these settings."""
    env = rl.Env(s.env, count=s.copies, name="env")
    policy = rl.Model("mlp:64x64", head="action", env=env, name="policy")
    critic = rl.Model("mlp:64x64", head="value", env=env, name="critic")
    optimizer = rl.AdamW(lr=s.lr, max_grad_norm=0.5, eps=1e-5)

    @rl.pipeline
    def ppo() -> None:
        def interact(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
            return rl.step(env, observations, rl.act(policy, observations))

        start = rl.state(rl.reset(env))
        last, episode = rl.unroll(interact, start=start, length=s.steps)
        rl.carry(last, into=start)
        values = rl.values(critic, episode)
        advantages, returns = rl.gae(
            episode.rewards, values, discount=s.discount, trace=s.trace, whiten=True
        )
        samples, targets, worths = rl.each_step(episode, advantages, returns)
        common: Any = {"epochs": s.epochs, "minibatch": s.minibatch, "optimizer": optimizer}
        acted = rl.train(policy, samples, targets, loss=rl.PPOLoss(), **common)
        judged = rl.train(critic, samples, worths, loss=rl.ValueLoss(clip=None), **common)
        rl.sync(acted, into=policy)
        rl.sync(judged, into=critic)

    return ppo


class Laps(BaseCallback):
    """When each of Stable-Baselines3's iterations begins to collect."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def _on_rollout_start(self) -> None:
        self.times.append(time.perf_counter())

    def _on_step(self) -> bool:
        return True


def theirs(s: Settings) -> list[float]:
    """Seconds of each counted iteration of Stable-Baselines3."""
    model = PPO(
        "MlpPolicy", make_vec_env(s.env, n_envs=s.copies), n_steps=s.steps,
        batch_size=s.minibatch, n_epochs=s.epochs, gamma=s.discount, gae_lambda=s.trace,
        learning_rate=s.lr, ent_coef=0.0, device="cpu", seed=0,
    )  # fmt: skip
    laps = Laps()
    model.learn(s.copies * s.steps * (s.iterations + WARM), callback=laps)
    ends = [*laps.times, time.perf_counter()]
    return [b - a for a, b in pairwise(ends)][WARM:]


def ours(compiled: Any, s: Settings, backend: str) -> list[float]:
    """Seconds of each counted iteration here."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_compiled(
            compiled, iterations=s.iterations + WARM, folder=Path(folder), backend=backend
        )
    return [record["seconds"] for record in done.records][WARM:]


def one_process(pipeline: rl.Pipeline) -> Any:
    """The plan for one core, with the environments in one group: nothing runs beside another."""
    best = compile_pipeline(pipeline, "1xcpu").plan
    settings = {name: s.model_copy(update={"chunks": 1}) for name, s in best.nodes.items()}
    plan = best.model_copy(update={"regions": {}, "nodes": settings})
    return compile_pipeline(pipeline, "1xcpu", plan=plan)


def compare(s: Settings, rounds: int, backend: str) -> dict[str, Any]:
    """One row: steps a second of both, in alternating rounds."""
    compiled = (
        one_process(pipeline_of(s)) if backend == "local" else compile_pipeline(pipeline_of(s))
    )
    speeds: dict[str, list[float]] = {"here": [], "stable_baselines3": []}
    work = s.copies * s.steps
    for _ in range(rounds):
        speeds["here"].append(work / statistics.median(ours(compiled, s, backend)))
        speeds["stable_baselines3"].append(work / statistics.median(theirs(s)))
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    return {
        "settings": asdict(s),
        "backend": backend,
        "steps_per_second": {name: statistics.median(each) for name, each in speeds.items()},
        "rounds": speeds,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one setting, two rounds")
    parser.add_argument("--backend", choices=["local", "ray"], default="local")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = SETTINGS[:1] if options.quick else SETTINGS
    rounds = 2 if options.quick else options.rounds
    rows = [compare(s, rounds, options.backend) for s in chosen]
    print("environment steps a second, medians of rounds")
    for row in rows:
        s, speed = row["settings"], row["steps_per_second"]
        print(
            f"  {s['env']:15} {s['copies']:3} x {s['steps']:4}  here {speed['here']:7,.0f}  "
            f"stable-baselines3 {speed['stable_baselines3']:7,.0f}  ratio {row['ratio']:.2f} "
            f"({min(row['ratios']):.2f}..{max(row['ratios']):.2f})"
        )
    if options.json:
        versions = {m.__name__: m.__version__ for m in (gymnasium, stable_baselines3, torch)}
        made = {"date": time.strftime("%Y-%m-%d"), "versions": versions, "rows": rows}
        options.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
