"""The whole way on this machine: plan, warm up, examine, reinforce, examine again.

python demo/main.py [--seed S] [--iterations N] [--backend ray|local] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from picture import draw

from rlinf_graph.cli.api import RunResult, compile_pipeline, run_compiled
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.cli.output import write_summary
from rlinf_graph.cli.progress import progress
from rlinf_graph.compiler.explain import explain, render_text
from rlinf_graph.ir.diagnostic import CompileError

FILE = "pipelines/grpo_arithmetic.py"
WARM_UP = 600


def main() -> None:
    """Run the demo and write what it gives."""
    options = arguments()
    out: Path = options.out
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    grpo = compile_pipeline(load_pipeline(FILE)[0], parameters={"iterations": options.iterations})
    print(render_text(explain(grpo)), flush=True)

    print(f"\n1. supervised warm-up on careless demonstrations, {WARM_UP} iterations")
    run("warm_up", out / "warm_up", options.seed, WARM_UP, {}, iterations=WARM_UP)
    warm = {"policy": str(out / "warm_up" / "checkpoint" / "policy")}
    before = examine(out / "exam_before", options.seed, warm)
    print(f"   exact match on 1,000 held-out problems: {before:.1%}")

    print(f"\n2. reinforcement, {options.iterations} iterations")
    with progress("grpo", options.iterations) as report:
        done = run_compiled(
            grpo, iterations=options.iterations, folder=out, seed=options.seed, initial=warm,
            backend=options.backend, report=report,
        )  # fmt: skip
    trained = {"policy": str(out / "checkpoint" / "policy")}
    after = examine(out / "exam_after", options.seed, trained)
    print(f"   exact match on 1,000 held-out problems: {after:.1%}, was {before:.1%}")

    draw(done.records, before, after, out / "learning_curve.png")
    estimate = grpo.plan.estimate
    summary: dict[str, Any] = {
        "exact_match_before": before,
        "exact_match_after": after,
        "seconds": round(time.perf_counter() - start, 1),
        "iterations": options.iterations,
        "estimated_iteration_s": estimate.iteration_s if estimate else None,
        "measured_iteration_s": done.iteration_s,
        "backend": options.backend,
        "seed": options.seed,
    }
    write_summary(out, summary)
    print(f"\nin {summary['seconds']:.0f} s; in {out}: metrics.jsonl, samples.jsonl, "
          "learning_curve.png, checkpoint/, summary.json, TensorBoard events")  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=["ray", "local"], default="ray")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    return parser.parse_args()


def run(
    name: str, out: Path, seed: int, count: int, initial: dict[str, str], **parameters: Any
) -> RunResult:
    """Compile and run another pipeline of the file."""
    pipeline, _ = load_pipeline(f"{FILE}:{name}")
    compiled = compile_pipeline(pipeline, parameters=parameters)
    with progress(name, count) as report:
        return run_compiled(
            compiled, iterations=count, folder=out, seed=seed, initial=initial, report=report
        )


def examine(out: Path, seed: int, initial: dict[str, str]) -> float:
    """Greedy exact match on the held-out problems."""
    return run("exam", out, seed, 1, initial).records[0]["exact_match/score"]


if __name__ == "__main__":
    try:
        main()
    except CompileError as error:
        sys.exit(str(error))
