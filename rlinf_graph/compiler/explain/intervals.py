"""How far an iteration's seconds may be off, and which plans cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlinf_graph.compiler.cost.uncertainty import Widths, together
from rlinf_graph.compiler.explain.report import Bottleneck
from rlinf_graph.compiler.explain.segment import Kind
from rlinf_graph.compiler.explain.steady import KIND, Steady


@dataclass(frozen=True)
class Part:
    """Seconds of a node on the bottleneck, and their width; None unless they were measured."""

    node: str
    seconds: float
    measured: float | None


def iteration_width(steady: Steady, bottleneck: Bottleneck) -> float:
    """Half the 80 % interval of the seconds of an iteration, as a logarithm.

    Seconds on the bottleneck (the busiest lane, or the chain where latency decides) count with the
    width of a measured node, all others with that of iterations in closed form, each by its share.
    The result is no less than the width of the bottleneck's longest node, by the same rule.
    """
    closed, parts = widths_of(steady).iteration, parts_of(steady, bottleneck)
    longest = _longest(parts)
    own = _measured(steady, longest) if longest else None
    return max(_joined(parts, closed), min(closed, own or closed))


def compared_width(steady: Steady, bottleneck: Bottleneck) -> float:
    """A plan's share in the width of the ratio of two plans' seconds.

    By share of the bottleneck, as in `iteration_width`: closed forms of plans of one pipeline have
    errors in common, so their ratio is known better than either, and measured seconds better still.
    """
    closed = widths_of(steady).compared
    parts = parts_of(steady, bottleneck)
    return min(closed, _joined(parts, closed))


def tied(seconds: float, other: float, width: float) -> bool:
    """Whether two estimates differ by less than the width of their ratio."""
    return abs(math.log(other / seconds)) < width if seconds > 0 and other > 0 else False


def widths_of(steady: Steady) -> Widths:
    """Of closed forms on the devices of a plan."""
    devices = sorted({device for leaf in steady.plan.leaves() for device in leaf.devices})
    return steady.costs.constants_of(devices or range(steady.cluster.size)).widths


def parts_of(steady: Steady, bottleneck: Bottleneck) -> list[Part]:
    """What the seconds of the bottleneck consist of. Switches and deliveries are closed forms."""
    spans: list[tuple[str, Kind, float]]
    if bottleneck.kind == "latency":
        events = [e for name in bottleneck.chain for e in steady.events_of(name)]
        spans = [(e.group, KIND.get(e.kind, "work"), e.seconds) for e in events]
    else:
        lane = max(steady.lanes, key=lambda found: found.busy_s)
        spans = [(s.node, s.kind, s.end_s - s.start_s) for s in lane.segments]
    return [
        Part(node, seconds, _measured(steady, node) if kind == "work" else None)
        for node, kind, seconds in spans
    ]


def _measured(steady: Steady, node: str) -> float | None:
    cost = steady.cost(node)
    return None if cost.origin == "roofline" or not cost.width else cost.width


def _joined(parts: Sequence[Part], closed: float) -> float:
    """The width of a sum; that of closed forms where there is nothing."""
    known = [(p.seconds, closed if p.measured is None else p.measured) for p in parts]
    return together(known) if sum(p.seconds for p in parts) > 0 else closed


def _longest(parts: Sequence[Part]) -> str | None:
    """The node that takes most of the seconds."""
    totals: dict[str, float] = {}
    for part in parts:
        totals[part.node] = totals.get(part.node, 0.0) + part.seconds
    return max(totals, key=lambda name: totals[name], default=None)
