"""How far estimates are off: three plans, and what staleness gives, estimated and measured on Ray.

    python benchmarks/estimate_vs_measured.py [--rounds N] [--iterations N] [--json OUT]

Profiles the pipeline of `benchmarks/plans` on this machine first. The plans then run interleaved,
each in every round; figures are medians over all iterations but the first of each run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rlinf_graph.cli.api import compile_pipeline, run_compiled
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.cli.profiling import profile_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.explain import explain
from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.cluster_file import load_cluster

PLANS = Path(__file__).parent / "plans"
NAMES = ("collocated", "disaggregated", "hybrid", "fresh", "stale")


def main() -> None:
    """Profile, estimate, run, compare."""
    options = arguments()
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    cluster = load_cluster("2xcpu")
    parameters: dict[str, Any] = {"tokens": options.tokens, "max_staleness": 1}
    profile = profile_pipeline(pipeline, cluster, parameters=parameters).profile
    ready: dict[str, Compiled] = {}
    estimates: dict[str, dict[str, float]] = {}
    for name in NAMES:
        given = plans.loads((PLANS / f"{name}.json").read_text(), name)
        compiled = [
            compile_pipeline(pipeline, cluster, plan=given, parameters=parameters, profile=used)
            for used in (None, profile)
        ]
        ready[name] = compiled[1]
        roofline, profiled = (explain(c).seconds for c in compiled)
        estimates[name] = {"roofline": roofline, "profiled": profiled}
    measured = run_all(ready, options.rounds, options.iterations)
    result = compare(estimates, measured)
    print(text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def run_all(ready: dict[str, Compiled], rounds: int, iterations: int) -> dict[str, list[float]]:
    """Seconds of every iteration but the first of each run, by plan."""
    found: dict[str, list[float]] = {name: [] for name in ready}
    with tempfile.TemporaryDirectory() as folder:
        for _round in range(rounds):
            for name, compiled in ready.items():
                done = run_compiled(
                    compiled, iterations=iterations, folder=Path(folder) / name, backend="ray"
                )
                found[name] += [record["seconds"] for record in done.records[1:]]
    return found


def compare(
    estimates: dict[str, dict[str, float]], measured: dict[str, list[float]]
) -> dict[str, Any]:
    """Medians, spreads and ratios."""
    plans_found = [
        {
            "plan": name,
            "estimated_s": estimates[name],
            "measured_median_s": statistics.median(seconds),
            "measured_quartiles_s": statistics.quantiles(seconds, n=4),
            "iterations": len(seconds),
            "ratios": {k: v / statistics.median(seconds) for k, v in estimates[name].items()},
            "seconds": seconds,
        }
        for name, seconds in measured.items()
    ]
    gain = {
        kind: estimates["fresh"][kind] / estimates["stale"][kind]
        for kind in ("roofline", "profiled")
    }
    really = statistics.median(measured["fresh"]) / statistics.median(measured["stale"])
    return {
        "date": datetime.date.today().isoformat(),
        "plans": plans_found,
        "staleness_1_speedup": {"estimated": gain, "measured": really},
    }


def text(result: dict[str, Any]) -> str:
    """A table."""
    lines = ["plan            roofline s  profiled s  measured s (quartiles)   profiled / measured"]
    for row in result["plans"]:
        low, _, high = row["measured_quartiles_s"]
        estimated = row["estimated_s"]
        lines.append(
            f"{row['plan']:14s}  {estimated['roofline']:10.3f}  {estimated['profiled']:10.3f}"
            f"  {row['measured_median_s']:10.3f} ({low:.3f} to {high:.3f})"
            f"   {row['ratios']['profiled']:.2f}"
        )
    speed = result["staleness_1_speedup"]
    lines.append(
        f"staleness 1 against 0: estimated {speed['estimated']['profiled']:.2f} ×, "
        f"measured {speed['measured']:.2f} ×"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
