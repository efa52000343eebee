"""Seconds and price of plans side by side."""

from __future__ import annotations

from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.explain.build import samples_of
from rlinf_graph.compiler.explain.rejected import layout_text


def pareto_text(compiled: Compiled) -> str:
    """A line for each plan of which no other one is both faster and cheaper, fastest first.

    Raises:
        CompileError: RG0405 for a cluster without prices.
    """
    if compiled.found is None:
        return "nothing was searched"
    samples = samples_of(compiled.graph)
    lines = [f"{'s/iteration':>12}{'samples/s':>12}{'price/1,000 samples':>21}  devices  plan"]
    for point, found in compiled.found.cheaper():
        price, plan = 1000 * point.price / samples, found.best.plan
        lines.append(
            f"{point.seconds:12.4g}{samples / point.seconds:12.4g}{price:21.4g}"
            f"  {sum(point.used):7}  {plan.mode} {layout_text(plan.placement)}"
        )
    return "\n".join(lines)
