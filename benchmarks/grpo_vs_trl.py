"""Samples a second of GRPO here and in TRL's GRPOTrainer, and rewards after as many samples.

python benchmarks/grpo_vs_trl.py --trl-python TRL/bin/python [--quick] [--rounds N] [--json OUT]

TRL has an environment of its own, so that its locks and ours do not bind each other:

    python -m venv TRL
    TRL/bin/pip install --no-deps -r requirements/trl.txt

(With a plain index the CPU build of torch is `torch==2.13.0`.) Both sides start from the same
checkpoint of the decoder of `demo/arithmetic` (2 layers, 128 wide) and have the same prompts,
samples a prompt, token limit, reward function, AdamW (constant rate, no weight decay, gradients
clipped to norm 1), float32, temperature 1, one optimizer step over the whole batch in each
iteration, and two threads or two processes of one. Both minimize the clipped surrogate summed over
tokens and divided by their number (TRL's `dapo`), without a KL term, advantages divided by the
group's standard deviation plus 1e-4, so one iteration makes the same update of the same batch.

What differs: the order of prompts and the random draws. TRL puts the current log-probabilities in
the ratio, here those of the rollout stand there: the same numbers on policy, but for rounding. TRL
generates by transformers' `generate`, without paging or vLLM, which is what it has on a processor;
here the torch engine does. TRL reports every tenth iteration, here every one is written to disk.

`ray` runs the compiler's best plan for two cores, `local` the same plan in one process, whose ranks
take turns on one core. Rounds alternate the sides, each round has another seed on all of them; the
first iterations of a run are not counted. A ratio is of one round. TRL runs without gradient
checkpointing and without bfloat16, which are its defaults and would slow it down here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: TRL would go before us

from grpo_of_trl import REWARDS

from rlinf_graph import rl
from rlinf_graph.cli.api import compile_pipeline, run_compiled

ROOT = Path(__file__).parents[1]
DATA = ROOT / "demo" / "arithmetic"
WARM = 3
"""Iterations of a run that are not counted."""

WINDOWS = 8
"""Of the reward curve: its iterations in so many equal parts."""

THREADS = 2
LIMIT_S = 900.0
"""Of one run of TRL."""


@dataclass(frozen=True)
class Settings:
    """Of both sides.

    Attributes:
        name: of the row.
        reward: a name in `REWARDS`.
        warm_up: iterations on demonstrations before; 0 begins at random weights.
        prompts, samples, max_tokens: of an iteration: prompts, responses to each, tokens at most.
        lr, beta2: of AdamW.
        iterations: of a run.
    """

    name: str
    reward: str
    warm_up: int
    prompts: int
    samples: int
    max_tokens: int
    lr: float
    beta2: float
    iterations: int


SETTINGS = (
    Settings("sevens", "sevens", 0, 16, 8, 16, 1e-3, 0.999, 48),
    Settings("sums", "is_correct", 200, 64, 8, 4, 5e-4, 0.95, 48),
)


@dataclass(frozen=True)
class Run:
    """Of one side: seconds and mean reward of each iteration."""

    seconds: list[float]
    rewards: list[float]


def first_weights(s: Settings, folder: Path) -> Path:
    """A checkpoint to start from: `transformers` and this engine load it."""
    policy = rl.Model(str(DATA / "decoder"), weights="random", name="policy")
    optimizer = rl.AdamW(lr=1.5e-3 if s.warm_up else 0.0, betas=(0.9, 0.95))

    @rl.pipeline
    def warm_up() -> None:
        examples = rl.examples(str(DATA / "demonstrations.jsonl"), batch=128)
        rl.train(policy, examples, loss=rl.SupervisedLoss(), optimizer=optimizer)

    out = folder / s.name
    run_compiled(compile_pipeline(warm_up, "1xcpu"), iterations=max(1, s.warm_up), folder=out)
    return out / "checkpoint" / "policy"


def pipeline_of(s: Settings) -> rl.Pipeline:
    """GRPO with these settings."""
    policy = rl.Model(str(DATA / "decoder"), weights="random", name="policy")
    betas = (0.9, s.beta2)

    @rl.pipeline
    def grpo() -> None:
        problems = rl.dataset(str(DATA / "train.jsonl"), batch=s.prompts, prompt_tokens=7)
        rollouts = rl.rollout(
            policy, problems, samples=s.samples, max_tokens=s.max_tokens, lengths=s.max_tokens
        )
        rewards = rl.verify(rollouts, REWARDS[s.reward])
        advantages = rl.group_advantages(rewards, eps=1e-4)
        optimizer = rl.AdamW(lr=s.lr, betas=betas, max_grad_norm=1.0)
        weights = rl.train(
            policy, rollouts, advantages, loss=rl.GRPOLoss(clip=0.2), optimizer=optimizer
        )
        rl.sync(weights, into=policy)

    return grpo


def ours(compiled: Any, s: Settings, checkpoint: Path, seed: int, backend: str) -> Run:
    """One run here."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_compiled(
            compiled, iterations=s.iterations, folder=Path(folder), seed=seed, backend=backend,
            initial={"policy": str(checkpoint)},
        )  # fmt: skip
    records = done.records
    return Run([r["seconds"] for r in records], [r["reward/mean"] for r in records])


def theirs(python: Path, s: Settings, checkpoint: Path, seed: int) -> tuple[Run, dict[str, str]]:
    """One run of TRL, in a process of its own, and the versions it had."""
    told = {
        **asdict(s), "checkpoint": str(checkpoint), "data": str(DATA / "train.jsonl"),
        "threads": THREADS, "seed": seed,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run.json")
        script = Path(__file__).with_name("grpo_of_trl.py")
        command = [python, script, json.dumps(told), out]
        done = subprocess.run(
            command, cwd=ROOT, timeout=LIMIT_S, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"TRL failed:\n{done.stderr[-2000:]}")
        said = json.loads(out.read_text())
    return Run(said["seconds"], said["rewards"]), said["versions"]


def windows(rewards: list[float]) -> list[float]:
    """Mean reward of each part of a run."""
    size = len(rewards) // WINDOWS
    return [statistics.fmean(rewards[i * size : (i + 1) * size]) for i in range(WINDOWS)]


def curves(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Rewards after equal samples: of each side the mean over seeds and the range of each window.

    `apart` is, of each side, the largest difference of its mean to TRL's in a window; `spread` the
    largest range of TRL's own seeds in one, beside which that has to be seen.
    """
    found: dict[str, Any] = {"mean": {}, "range": {}, "apart": {}}
    for side, each in runs.items():
        columns = list(zip(*(windows(run.rewards) for run in each), strict=True))
        found["mean"][side] = [statistics.fmean(c) for c in columns]
        found["range"][side] = [(min(c), max(c)) for c in columns]
    for side, means in found["mean"].items():
        pairs = zip(means, found["mean"]["trl"], strict=True)
        found["apart"][side] = max(abs(a - b) for a, b in pairs)
    found["spread"] = max(high - low for low, high in found["range"]["trl"])
    return found


def summary(s: Settings, runs: dict[str, list[Run]], loads: list[float]) -> dict[str, Any]:
    """One row of the results, with every repetition."""
    work = s.prompts * s.samples
    speeds = {
        side: [work / statistics.median(run.seconds[WARM:]) for run in each]
        for side, each in runs.items()
    }
    ratios = {
        f"{side}/trl": [a / b for a, b in zip(each, speeds["trl"], strict=True)]
        for side, each in speeds.items()
        if side != "trl"
    }
    return {
        "settings": asdict(s),
        "samples_per_second": {side: statistics.median(each) for side, each in speeds.items()},
        "ratios": {name: statistics.median(each) for name, each in ratios.items()},
        "rounds": {"samples_per_second": speeds, "ratios": ratios, "load_before": loads},
        "rewards": curves(runs),
        "runs": {side: [asdict(run) for run in each] for side, each in runs.items()},
    }


def compare(
    s: Settings, python: Path, rounds: int, backends: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """One row, and TRL's versions."""
    compiled = compile_pipeline(pipeline_of(s), f"{THREADS}xcpu")
    versions: dict[str, str] = {}
    runs: dict[str, list[Run]] = {side: [] for side in (*backends, "trl")}
    loads: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = first_weights(s, Path(folder))

        def trl(seed: int) -> Run:
            run, found = theirs(python, s, checkpoint, seed)
            versions.update(found)
            return run

        def here(backend: str) -> Callable[[int], Run]:
            return lambda seed: ours(compiled, s, checkpoint, seed, backend)

        sides = {**{name: here(name) for name in backends}, "trl": trl}
        for seed in range(rounds):
            loads.append(os.getloadavg()[0])
            for side in sides if seed % 2 == 0 else reversed(sides):
                runs[side].append(sides[side](seed))
                rate = s.prompts * s.samples / statistics.median(runs[side][-1].seconds[WARM:])
                print(f"  {s.name} round {seed} {side:6} {rate:7,.0f}", file=sys.stderr, flush=True)
    return summary(s, runs, loads), versions


def shown(row: dict[str, Any]) -> str:
    """A row as text."""
    s, speeds = row["settings"], row["samples_per_second"]
    lines = [
        f"{s['name']}: {s['prompts']} prompts x {s['samples']} samples x {s['max_tokens']} tokens, "
        f"{s['iterations']} iterations",
        "  samples a second, medians of rounds (range); ratio to TRL in the same round",
    ]
    for side, each in row["rounds"]["samples_per_second"].items():
        line = f"    {side:6} {speeds[side]:7,.0f}  ({min(each):,.0f}..{max(each):,.0f})"
        if side != "trl":
            ratios = row["rounds"]["ratios"][f"{side}/trl"]
            line += f"  ratio {row['ratios'][f'{side}/trl']:.2f}"
            line += f" ({min(ratios):.2f}..{max(ratios):.2f})"
        lines.append(line)
    size = s["iterations"] // WINDOWS * s["prompts"] * s["samples"]
    lines.append(f"  mean reward of each {size:,} samples, over seeds (lowest..highest)")
    for side, means in row["rewards"]["mean"].items():
        spans = row["rewards"]["range"][side]
        cells = (f"{m:.2f} ({a:.2f}..{b:.2f})" for m, (a, b) in zip(means, spans, strict=True))
        lines.append(f"    {side:6} " + "  ".join(cells))
    apart = (f"{side} {d:.3f}" for side, d in row["rewards"]["apart"].items() if side != "trl")
    lines.append(
        f"  largest difference to TRL's mean in a window: {', '.join(apart)}; "
        f"TRL's seeds differ by {row['rewards']['spread']:.3f}"
    )
    return "\n".join(lines)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", type=Path, required=True, help="where TRL is installed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one setting, one short round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen, rounds = SETTINGS, options.rounds
    if options.quick:
        chosen, rounds = (SETTINGS[0].__class__(**{**asdict(SETTINGS[0]), "iterations": 16}),), 1
    python = options.trl_python.absolute()
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for s in chosen:
        row, versions = compare(s, python, rounds, ["ray", "local"])
        rows.append(row)
        print(shown(row), flush=True)
    if options.json:
        ratios = {row["settings"]["name"]: row["ratios"] for row in rows}
        made = {
            "date": time.strftime("%Y-%m-%d"), "versions": versions, "ratios": ratios, "rows": rows,
        }  # fmt: skip
        options.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
