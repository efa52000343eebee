"""How fast the cost model is: layouts of the 7B GRPO pipeline, and rollouts with their lengths.

python benchmarks/cost_speed.py [--layouts 10000] [--rounds 5] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Generate, Train

PIPELINE = Path(__file__).parents[1] / "pipelines" / "grpo_gsm8k.py"
ROOM = 1e15
"""Bytes of a device: no layout is left out for its memory, all are costed in full."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both, print medians and, with --json, every round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layouts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    graph = run_passes(load_pipeline(str(PIPELINE))[0].build())
    chosen = layouts(graph, given.layouts)
    rounds = [one_round(graph, chosen) for _ in range(given.rounds)]
    made: dict[str, Any] = {
        "layouts": len(chosen),
        "layouts_s": median(r["layouts_s"] for r in rounds),
        "rollout_ms": median(r["rollout_ms"] for r in rounds),
        "rounds": rounds,
    }
    print(f"{made['layouts']:,} layouts of `{graph.name}`: {made['layouts_s']:.2f} s (median)")
    print(f"a rollout with its length distribution: {made['rollout_ms']:.2f} ms (median)")
    if given.json:
        given.json.write_text(json.dumps(made, indent=1) + "\n", "utf-8")


def layouts(graph: Graph, count: int) -> list[tuple[Node, NodePlan]]:
    """Distinct layouts of all device nodes that can run, drawn with a fixed seed."""
    nodes = [node for node in graph.nodes if node.model and node.work is not None]
    costs = CostModel(graph, load_cluster("1024xH100"))
    every = [(node, plan) for node in nodes for plan in _plans(node)]
    random.Random(0).shuffle(every)
    found: list[tuple[Node, NodePlan]] = []
    for node, plan in every:
        if costs.refusal(node, range(plan.parallel.devices), plan) is None:
            found.append((node, plan))
        if len(found) == count:
            break
    return found


def _plans(node: Node) -> list[NodePlan]:
    sampled = isinstance(node.work, Generate)
    return [
        NodePlan(
            engine="vllm" if sampled else "megatron",
            parallel=Parallel(dp=dp, tp=tp, pp=pp, cp=cp, shard=shard),
            micro_batch=None if sampled else micro_batch,
            chunks=1 if isinstance(node.work, Train) else chunks,
            recompute=bool(recompute) and isinstance(node.work, Train),
        )
        for dp, tp, pp, cp, shard, micro_batch, chunks, recompute in product(
            (1, 2, 4, 8, 16, 32, 64, 128),
            (1, 2, 4),
            (1, 2, 4, 7),
            (1, 2),
            ("none", "fsdp"),
            (1, 2, 4, 8),
            (1, 2, 4, 8),
            (0, 1),
        )
        if dp * tp * pp * cp <= 1024
    ]


def one_round(graph: Graph, chosen: Sequence[tuple[Node, NodePlan]]) -> dict[str, float]:
    """Seconds for all layouts by a fresh model, and milliseconds of one rollout by another."""
    costs = CostModel(graph, load_cluster("1024xH100"))
    begin = time.perf_counter()
    for node, plan in chosen:
        costs.within(node, range(plan.parallel.devices), plan, ROOM)
    spent = time.perf_counter() - begin
    sampled = [(n, p) for n, p in chosen if isinstance(n.work, Generate)]
    node, plan = sampled[0]
    begin = time.perf_counter()
    CostModel(graph, load_cluster("1024xH100")).node(node, range(plan.parallel.devices), plan)
    return {"layouts_s": spent, "rollout_ms": (time.perf_counter() - begin) * 1e3}


if __name__ == "__main__":
    main()
