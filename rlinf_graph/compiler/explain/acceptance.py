"""How many groups a filter let through, beside how many it was declared to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rlinf_graph.ir.graph import Graph

OFF = 0.1
"""A measured share that is so far from the declared one makes estimates wrong by as much."""


def acceptance_lines(graph: Graph, metrics: Iterable[Mapping[str, float]]) -> Iterator[str]:
    """A line for the refilled part of a pipeline; none where there is none, or nothing was run.

    Args:
        graph: that was run.
        metrics: of its iterations.
    """
    found = [kept for kept in metrics if "refill/acceptance" in kept]
    loops = [node for node in graph.nodes if node.type == "settle"]
    if not found or not loops:
        return
    measured = _mean(found, "refill/acceptance")
    declared = {node.option("acceptance") for node in loops} - {None}
    beside = f", {max(declared):.2f} declared" if len(declared) == 1 else ""
    rounds = _mean(found, "refill/rounds")
    line = f"refill: acceptance {measured:.2f} measured{beside}; {rounds:.1f} rounds an iteration"
    short = sum(kept["refill/short"] > 0 for kept in found)
    yield line + (f"; too few in {short:,} of {len(found):,} iterations" if short else "")
    if len(declared) == 1 and abs(measured - max(declared)) > OFF:
        yield f"        acceptance={measured:.2f} would let the plan count on what is found"


def _mean(found: list[Mapping[str, float]], name: str) -> float:
    return sum(kept[name] for kept in found) / len(found)
