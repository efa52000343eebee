"""The smallest set of pins that leaves no plan."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from rlinf_graph.compiler.schedule.pins import Pins
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.graph import Graph

MOST_TOGETHER = 3
"""Pins of a set whose smaller sets are all tried; a larger one is only cut down pin by pin."""


def smallest_conflict(pins: Pins, possible: Callable[[Pins], bool]) -> frozenset[str]:
    """Names of pins that allow no plan together, as few as there can be.

    Empty where there is no plan without pins either. More than three are a set of which each one
    is needed, not always the smallest.

    Args:
        pins: that leave no plan.
        possible: whether some pins leave one.
    """
    if not pins or not possible(Pins()):
        return frozenset()
    names = pins.names()
    for count in range(1, min(MOST_TOGETHER, len(names) - 1) + 1):
        for chosen in combinations(names, count):
            if not possible(pins.only(frozenset(chosen))):
                return frozenset(chosen)
    needed = frozenset(names)
    for name in names:
        if not possible(pins.only(needed - {name})):
            needed -= {name}
    return needed


def conflict(
    graph: Graph, cluster: str, pins: Pins, names: frozenset[str], why: tuple[str, ...]
) -> CompileError:
    """RG0407 with the pins that contradict each other, or the one that cannot be kept.

    `why` says what stands against the plan that comes nearest, where that is known.
    """
    shown = [name for name in pins.names() if name in names]
    if len(shown) == 1:
        message = f"no plan of `{graph.name}` on {cluster} keeps the pin of `{shown[0]}`"
    else:
        listed = ", ".join(f"`{name}`" for name in shown[:-1]) + f" and `{shown[-1]}`"
        message = f"no plan of `{graph.name}` on {cluster} keeps the pins of {listed} together"
    given = (f"`{name}` is pinned to {pins.text(name)}" for name in shown)
    notes = (*given, *(f"nearest plan: {reason}" for reason in why))
    some = "without it" if len(shown) == 1 else "without any one of them"
    help_text = (f"leave out or change one: {some} there are plans",)
    return CompileError([Diagnostic("RG0407", message, graph.span, notes=notes, help=help_text)])
