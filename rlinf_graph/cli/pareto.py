"""Seconds and price of plans side by side."""

from __future__ import annotations

from dataclasses import replace

from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.explain.bottleneck import find_bottleneck
from rlinf_graph.compiler.explain.build import samples_of, steady_state
from rlinf_graph.compiler.explain.intervals import compared_width, tied
from rlinf_graph.compiler.explain.reasons import TIE
from rlinf_graph.compiler.explain.rejected import layout_text
from rlinf_graph.compiler.explain.steady import Steady


def pareto_text(compiled: Compiled) -> str:
    """A line for each plan of which no other one is both faster and cheaper, fastest first.

    Raises:
        CompileError: RG0405 for a cluster without prices.
    """
    if compiled.found is None:
        return "nothing was searched"
    samples = samples_of(compiled.graph)
    head = f"{'s/iteration':>12}{'vs above':>15}{'samples/s':>12}{'price/1,000 samples':>21}"
    lines, above = [f"{head}  devices  plan"], None
    for point, found in compiled.found.cheaper():
        price, plan = 1000 * point.price / samples, found.best.plan
        steady = steady_state(replace(compiled, plan=plan, found=found))
        slower = _slower(above, steady) if above else "-".ljust(len(TIE) + 1)
        lines.append(
            f"{point.seconds:12.4g}{slower:>15}{samples / point.seconds:12.4g}{price:21.4g}"
            f"  {sum(point.used):7}  {plan.mode} {layout_text(plan.placement)}"
        )
        above = steady
    if any(TIE in line for line in lines):
        lines.append("tie: nearer to the one above than estimates can tell")
    return "\n".join(lines)


def _slower(above: Steady, steady: Steady) -> str:
    """By how much a plan is slower than the one above, and whether estimates can tell."""
    width = max(compared_width(plan, find_bottleneck(plan)) for plan in (above, steady))
    more = f"{100 * (steady.seconds / above.seconds - 1):+.1f}%"
    return more + (TIE if tied(above.seconds, steady.seconds, width) else " " * len(TIE))
