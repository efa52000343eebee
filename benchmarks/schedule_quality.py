"""Whether the search finds the best plan: scheduling problems with tables of costs.

    python benchmarks/schedule_quality.py [--instances FILE] [--random N] [--json OUT]

Solves every instance of a file in the format of `benchmarks/data/schedule_instances.json`, the
default, with the exact search of `compiler/schedule/partition.py`, and random ones, for which a
second program tries every plan. Prints the objective, its ratio to the best known and to the
reference's, and the seconds of each search.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlinf_graph.compiler.schedule.tables import Tables

DATA = Path(__file__).parent / "data" / "schedule_instances.json"
SAME = 1e-9


@dataclass(frozen=True)
class Result:
    """One instance, solved."""

    name: str
    seconds: float
    plan: list[tuple[list[str], int]]
    search_seconds: float
    proved: bool
    best: float | None
    reference: float | None

    @property
    def ratio(self) -> float | None:
        """To the best known."""
        return self.seconds / self.best if self.best else None


def main() -> None:
    """Solve, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=Path, default=DATA)
    parser.add_argument("--random", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: list[Result] = []
    solved = [solve(each) for each in json.loads(options.instances.read_text())]
    print(text(solved))
    print(summary("given", solved))
    results += solved
    made = [solve(each) for each in random_instances(options.random)]
    if made:
        print(summary("random", made))
    results += made
    if options.json:
        rows = [
            {
                "name": r.name,
                "seconds": r.seconds,
                "plan": r.plan,
                "search_seconds": r.search_seconds,
                "proved": r.proved,
            }
            for r in results
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def solve(instance: dict[str, Any]) -> Result:
    """Search, and add up what the plan found takes, from the instance alone."""
    seconds = {
        name: {int(devices): each for devices, each in table.items()}
        for name, table in instance["seconds_per_microbatch"].items()
    }
    start = time.perf_counter()
    tables = Tables(seconds, instance["n_gpus"], instance["microbatches"])
    division = tables.divide()
    taken = time.perf_counter() - start
    if division is None:
        return Result(instance["name"], float("inf"), [], taken, proved=True,
                      best=instance.get("best_seconds"), reference=None)  # fmt: skip
    plan = tables.named(division)
    return Result(
        instance["name"],
        objective(instance, plan),
        plan,
        taken,
        division.proved,
        instance.get("best_seconds"),
        instance.get("reference_seconds"),
    )


def objective(instance: dict[str, Any], plan: list[tuple[list[str], int]]) -> float:
    """Seconds of a plan, which must be one: every node once, no more devices than there are."""
    table = instance["seconds_per_microbatch"]
    placed = [name for names, _devices in plan for name in names]
    if sorted(placed) != sorted(table) or sum(g for _n, g in plan) > instance["n_gpus"]:
        raise ValueError(f"{instance['name']}: {plan} is no plan")
    stages = [sum(table[name][str(devices)] for name in names) for names, devices in plan]
    return sum(stages) + (instance["microbatches"] - 1) * max(stages)


def random_instances(count: int) -> Iterator[dict[str, Any]]:
    """Small ones, some with holes in their tables and times that do not fall, solved by trying."""
    for number in range(count):
        draw = random.Random(number)
        devices, nodes = draw.randint(1, 8), draw.randint(1, 5)
        table: dict[str, dict[str, float]] = {}
        for node in range(nodes):
            work, bend = draw.uniform(1, 100), draw.uniform(0.3, 1.1)
            table[f"node {node}"] = {
                str(g): work / g**bend * draw.uniform(0.8, 1.25)
                for g in range(1, devices + 1)
                if g == 1 or draw.random() > 0.2
            }
        made = {
            "name": f"random-{number}",
            "n_gpus": devices,
            "microbatches": draw.choice((1, 2, 8, 64)),
            "seconds_per_microbatch": table,
        }
        yield made | {"best_seconds": tried(made)}


def tried(instance: dict[str, Any]) -> float:
    """The best objective of all plans, one after another."""
    table, most = instance["seconds_per_microbatch"], instance["n_gpus"]
    more = instance["microbatches"] - 1

    def rest(nodes: list[str], left: int, stages: list[float]) -> float:
        if not nodes:
            return sum(stages) + more * max(stages)
        best = float("inf")
        for chosen in range(1 << (len(nodes) - 1)):
            stage = [nodes[0], *(n for i, n in enumerate(nodes[1:]) if chosen >> i & 1)]
            others = [n for n in nodes if n not in stage]
            for size in range(1, left + 1):
                if all(str(size) in table[name] for name in stage):
                    seconds = sum(table[name][str(size)] for name in stage)
                    best = min(best, rest(others, left - size, [*stages, seconds]))
        return best

    return rest(list(table), most, [])


def text(results: list[Result]) -> str:
    """A line for each instance."""
    lines = ["instance                     seconds  to best   to reference   search s  proved"]
    for r in results:
        best = f"{r.ratio:.6f}" if r.ratio else "-"
        reference = f"{r.seconds / r.reference:.3f}" if r.reference else "fails"
        lines.append(
            f"{r.name:24s} {r.seconds:11.3f}  {best:>8s}  {reference:>13s}  {r.search_seconds:9.4f}"
            f"  {'yes' if r.proved else 'no'}"
        )
    return "\n".join(lines)


def summary(what: str, results: list[Result]) -> str:
    """How many are right, and the seconds."""
    right = sum(r.ratio is not None and abs(r.ratio - 1) <= SAME for r in results)
    proved = sum(r.proved for r in results)
    times = [r.search_seconds for r in results]
    return (
        f"{what}: {right} of {len(results)} at the best within {SAME:g}, {proved} proved; "
        f"{sum(times):.2f} s of search, median {statistics.median(times) * 1e3:.1f} ms, "
        f"longest {max(times) * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    main()
