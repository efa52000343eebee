"""The whole way: warm up on careless demonstrations, examine, reinforce, examine again.

python demo/tool_agent/main.py [--seed S] [--iterations N] [--backend local|ray] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rlinf_graph.cli.api import RunResult, compile_pipeline, run_compiled
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.cli.output import write_summary
from rlinf_graph.cli.progress import progress
from rlinf_graph.compiler.explain import explain, render_text
from rlinf_graph.ir.diagnostic import CompileError

FILE = "pipelines/tool_agent.py"
WARM_UP = 300


def main() -> None:
    """Run the demo and write what it gives."""
    options = arguments()
    out: Path = options.out
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    pipeline, _ = load_pipeline(f"{FILE}:tool_agent")
    agent = compile_pipeline(pipeline, parameters={"iterations": options.iterations})
    print(render_text(explain(agent)), flush=True)

    print(f"\n1. supervised warm-up on careless demonstrations, {WARM_UP} iterations")
    run("warm_up", out / "warm_up", options.seed, WARM_UP, {}, iterations=WARM_UP)
    warm = {"policy": str(out / "warm_up" / "checkpoint" / "policy")}
    before = examine(out / "exam_before", options.seed, warm)
    print(f"   right answers to 400 held-out problems: {before:.1%}")

    print(f"\n2. reinforcement with tools, {options.iterations} iterations")
    with progress("tool_agent", options.iterations) as report:
        done = run_compiled(
            agent, iterations=options.iterations, folder=out, seed=options.seed, initial=warm,
            backend=options.backend, report=report,
        )  # fmt: skip
    trained = {"policy": str(out / "checkpoint" / "policy")}
    after = examine(out / "exam_after", options.seed, trained)
    calls, failed = (sum(r[name] for r in done.records) for name in ("tool/calls", "tool/failed"))
    print(f"   right answers to 400 held-out problems: {after:.1%}, was {before:.1%}")
    print(f"   {calls:,.0f} calls of tools, {failed / calls:.1%} of which failed")

    estimate = agent.plan.estimate
    summary: dict[str, Any] = {
        "exact_match_before": before,
        "exact_match_after": after,
        "tool_calls": calls,
        "tool_calls_failed": failed,
        "seconds": round(time.perf_counter() - start, 1),
        "iterations": options.iterations,
        "estimated_iteration_s": estimate.iteration_s if estimate else None,
        "measured_iteration_s": done.iteration_s,
        "backend": options.backend,
        "seed": options.seed,
    }
    write_summary(out, summary)
    print(f"\nin {summary['seconds']:.0f} s; in {out}: metrics.jsonl, samples.jsonl, checkpoint/, "
          "summary.json, TensorBoard events")  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=["local", "ray"], default="local")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/tool_agent"))
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
    """Greedy success on the held-out problems, tools and all."""
    return run("exam", out, seed, 1, initial).records[0]["exact_match/score"]


if __name__ == "__main__":
    try:
        main()
    except CompileError as error:
        sys.exit(str(error))
