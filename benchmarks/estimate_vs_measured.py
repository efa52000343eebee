"""How far estimates are off: three plans, and what staleness gives, estimated and measured on Ray.

    python benchmarks/estimate_vs_measured.py [--rounds N] [--iterations N] [--json OUT]

In every round each plan of `benchmarks/plans` has its turn: the pipeline is profiled, and then the
plan runs: `collocated`, `disaggregated` and `hybrid`; and with other sizes, for which the two sides
take about the same time, `fresh` and `stale`, which differ in staleness only. A ratio is that of
one profile's estimate to the median iteration of the run right after it, without the first
iteration; what is quoted is the median over the rounds. A shared machine may be half as fast from
one minute to the next: only what was measured together can be compared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rlinf_graph.cli.api import compile_pipeline, run_compiled
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.cli.profiling import profile_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.cost.profile import Profile, versions_here
from rlinf_graph.compiler.explain import explain
from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster

PLANS = Path(__file__).parent / "plans"
MODES = ("collocated", "disaggregated", "hybrid")
BALANCED = ("fresh", "stale")
SIZES: dict[tuple[str, ...], dict[str, Any]] = {
    MODES: {"batch": 64, "tokens": 24, "max_staleness": 1},
    BALANCED: {"batch": 8, "tokens": 56, "max_staleness": 1},
}
KINDS = ("roofline", "profiled")


@dataclass
class Plan:
    """What was found out about a plan: seconds of an iteration.

    Attributes:
        estimated: by kind, one for each round.
        measured: in each round, of every iteration that counts.
    """

    estimated: dict[str, list[float]] = field(
        default_factory=lambda: defaultdict[str, list[float]](list)
    )
    measured: list[list[float]] = field(default_factory=list[list[float]])

    def estimate(self, kind: str) -> float:
        """The median over the rounds."""
        return median(self.estimated[kind])

    @property
    def seconds(self) -> list[float]:
        """Of all iterations that count."""
        return [seconds for each in self.measured for seconds in each]

    def ratio(self, kind: str) -> float:
        """Estimate to measurement of the same round; the median over the rounds."""
        pairs = zip(self.estimated[kind], self.measured, strict=True)
        return median(estimate / median(seconds) for estimate, seconds in pairs)


def main() -> None:
    """Profile, estimate, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cluster = load_cluster("2xcpu")
    found: dict[str, Plan] = defaultdict(Plan)
    for _round in range(options.rounds):
        for names, sizes in SIZES.items():
            for name in names:
                compiled, estimates = prepared(name, sizes, cluster)
                for kind, seconds in estimates.items():
                    found[name].estimated[kind].append(seconds)
                found[name].measured.append(measured(compiled, options.iterations))
    result = compare(found)
    print(text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def prepared(
    name: str, sizes: dict[str, Any], cluster: Cluster
) -> tuple[Compiled, dict[str, float]]:
    """A plan, compiled with a fresh profile, and its estimates by kind."""
    pipeline, _others = load_pipeline(str(PLANS / "pipeline.py"))
    profile = profile_pipeline(pipeline, cluster, parameters=sizes).profile
    used: dict[str, Profile | None] = {"roofline": None, "profiled": profile}
    given = plans.loads((PLANS / f"{name}.json").read_text(), name)
    compiled = {
        kind: compile_pipeline(pipeline, cluster, plan=given, parameters=sizes, profile=by)
        for kind, by in used.items()
    }
    return compiled["profiled"], {k: explain(c).seconds for k, c in compiled.items()}


def measured(compiled: Compiled, iterations: int) -> list[float]:
    """Seconds of every iteration of a run but the first."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_compiled(compiled, iterations=iterations, folder=Path(folder), backend="ray")
    return [record["seconds"] for record in done.records[1:]]


def compare(found: dict[str, Plan]) -> dict[str, Any]:
    """Medians, spreads and ratios."""
    rows = [
        {
            "plan": name,
            "iterations": len(plan.seconds),
            "estimated_s": {kind: plan.estimate(kind) for kind in KINDS},
            "measured_median_s": median(plan.seconds),
            "measured_quartiles_s": quantiles(plan.seconds, n=4),
            "ratios": {kind: plan.ratio(kind) for kind in KINDS},
            "estimates_s": plan.estimated,
            "seconds": plan.measured,
        }
        for name, plan in found.items()
    ]
    fresh, stale = (found[name] for name in BALANCED)
    gained = median(fresh.seconds) / median(stale.seconds)
    estimated = {kind: fresh.estimate(kind) / stale.estimate(kind) for kind in KINDS}
    return {
        "date": datetime.date.today().isoformat(),
        "versions": versions_here(),
        "sizes": {" ".join(names): sizes for names, sizes in SIZES.items()},
        "plans": rows,
        "staleness_1_speedup": {
            "measured": gained,
            "estimated": estimated,
            "ratios": {kind: seconds / gained for kind, seconds in estimated.items()},
        },
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
        f"stale against fresh: {speed['measured']:.2f} × as fast, estimated "
        f"{speed['estimated']['profiled']:.2f} ×; ratio {speed['ratios']['profiled']:.2f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
