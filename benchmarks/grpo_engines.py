"""GRPO on sums with vLLM and Megatron beside the torch engine: held-out accuracy from one warm-up.

    PYTHONPATH=.megatron python benchmarks/grpo_engines.py --vllm-python .venv-vllm/bin/python
        [--iterations N] [--seed S] [--json OUT]

`make .venv-vllm/.ready .megatron/.ready` installs both. The pipeline is
`pipelines/grpo_arithmetic.py`; all sides start from the same checkpoint, with the same seed:

- `torch`: samples and trains with the torch engine, by the best plan for two cores;
- `vllm, megatron dp 2` and `vllm, megatron tp 2`: vLLM in one worker process, Megatron in two.

Each trained model is examined by the torch engine: greedy, exact match on 1,000 held-out problems.
Seconds are told beside it and compare nothing: on a processor vLLM and Megatron are for tests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlinf_graph.cli.api import compile_pipeline, run_compiled
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.cli.progress import progress
from rlinf_graph.ir.diagnostic import CompileError

FILE = str(Path(__file__).parents[1] / "pipelines" / "grpo_arithmetic.py")
WARM_UP = 600
WITHIN = 0.03
"""Of the torch engine's accuracy."""
WINDOW = 20
"""Iterations at the beginning and at the end whose mean reward is told."""


@dataclass(frozen=True)
class Side:
    """Which engines, on what, by which pins."""

    name: str
    cluster: str
    engines: Mapping[str, str]
    pins: Mapping[str, str]


SIDES = (
    Side("torch", "2xcpu", {}, {}),
    *(
        Side(
            f"vllm, megatron {layout} 2", "3xcpu", {"rollout": "vllm", "train": "megatron"},
            {"rollout policy": "0", "train policy": f"1-2 {layout} 2"},
        )
        for layout in ("dp", "tp")
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Of a side.

    Attributes:
        side: its name.
        accuracy: greedy exact match on the held-out problems after training.
        first, last: mean reward of the first and last iterations.
        mismatch_mean, mismatch_max: of log-probabilities between rollout and trainer before the
            first optimizer step of an iteration: the mean over iterations, and the largest.
        iteration_s: median seconds.
        rewards: of each iteration.
    """

    side: str
    accuracy: float
    first: float
    last: float
    mismatch_mean: float
    mismatch_max: float
    iteration_s: float
    rewards: list[float]


def trained(
    side: Side, iterations: int, seed: int, warm: str, out: Path, pythons: Mapping[str, str]
) -> Outcome:
    """Train from a checkpoint; what came of it."""
    named = {engine: path for engine, path in pythons.items() if engine in side.engines.values()}
    parameters = {"iterations": iterations, **side.engines}
    ready = compile_pipeline(
        load_pipeline(FILE)[0], side.cluster, parameters=parameters, pins=side.pins,
        runnable=True, pythons=named,
    )  # fmt: skip
    with progress(side.name, iterations) as report:
        done = run_compiled(
            ready, iterations=iterations, folder=out, seed=seed, backend="ray", pythons=named,
            initial={"policy": warm}, report=report,
        )  # fmt: skip
    rewards = [record["reward/mean"] for record in done.records]
    ends = statistics.fmean(rewards[:WINDOW]), statistics.fmean(rewards[-WINDOW:])
    mismatch = (
        statistics.fmean(r["train/mismatch_mean"] for r in done.records),
        max(r["train/mismatch_max"] for r in done.records),
    )
    accuracy = examined(str(out / "checkpoint" / "policy"), seed, out / "exam")
    return Outcome(side.name, accuracy, *ends, *mismatch, done.iteration_s, rewards)


def examined(checkpoint: str, seed: int, out: Path) -> float:
    """Greedy exact match on the held-out problems, by the torch engine."""
    ready = compile_pipeline(load_pipeline(f"{FILE}:exam")[0], "1xcpu")
    done = run_compiled(ready, iterations=1, folder=out, seed=seed, initial={"policy": checkpoint})
    return done.records[0]["exact_match/score"]


def warmed(seed: int, out: Path) -> str:
    """The checkpoint that all sides start from."""
    warm_up = load_pipeline(f"{FILE}:warm_up")[0]
    ready = compile_pipeline(warm_up, "1xcpu", parameters={"iterations": WARM_UP})
    with progress("warm_up", WARM_UP) as report:
        run_compiled(ready, iterations=WARM_UP, folder=out, seed=seed, report=report)
    return str(out / "checkpoint" / "policy")


def shown(before: float, outcomes: list[Outcome]) -> str:
    """A table."""
    lines = [f"before: {before:.1%} of the held-out problems"]
    lines.append(f"{'':<22}{'after':>8}{'reward':>16}{'mismatch mean':>16}{'max':>10}{'s':>8}")
    for one in outcomes:
        reward = f"{one.first:.3f} → {one.last:.3f}"
        lines.append(
            f"{one.side:<22}{one.accuracy:>8.1%}{reward:>16}{one.mismatch_mean:>16.1e}"
            f"{one.mismatch_max:>10.1e}{one.iteration_s:>8.2f}"
        )
    for one in outcomes[1:]:
        apart = one.accuracy - outcomes[0].accuracy
        verdict = "within" if apart >= -WITHIN else "MISSED:"
        lines.append(f"{one.side}: {100 * apart:+.1f} points, {verdict} {100 * WITHIN:.0f}")
    return "\n".join(lines)


def main() -> None:
    """Train all sides and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-python", required=True, help="where vLLM is installed")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/grpo_engines"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    out, seed = options.out, options.seed
    warm = warmed(seed, out / "warm_up")
    before = examined(warm, seed, out / "before")
    outcomes: list[Outcome] = []
    for side in SIDES:
        folder = out / side.name.replace(", ", "-").replace(" ", "-")
        pythons = {"vllm": options.vllm_python}
        outcome = trained(side, options.iterations, seed, warm, folder, pythons)
        outcomes.append(outcome)
        print(shown(before, outcomes), flush=True)
    if options.json:
        made: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"), "seed": seed, "iterations": options.iterations,
            "before": before, "within": WITHIN, "sides": [asdict(one) for one in outcomes],
        }  # fmt: skip
        options.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except CompileError as error:
        sys.exit(str(error))
