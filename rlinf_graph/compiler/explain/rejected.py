"""The other kinds of plan, and why they are not the best."""

from __future__ import annotations

from itertools import groupby

from rlinf_graph.compiler.explain.bottleneck import find_bottleneck
from rlinf_graph.compiler.explain.intervals import compared_width, tied
from rlinf_graph.compiler.explain.report import Given, Margin, Rejected, SearchSummary
from rlinf_graph.compiler.explain.rows import staleness_of
from rlinf_graph.compiler.explain.steady import Steady
from rlinf_graph.compiler.schedule.families import Infeasible
from rlinf_graph.compiler.schedule.search import Found
from rlinf_graph.compiler.schedule.space import Simulated
from rlinf_graph.ir.plan import Leaf, Placement, Split, devices_of, mode_of


def rejected_plans(steady: Steady, found: Found) -> tuple[Rejected, ...]:
    """Slower kinds of plan, best first, then what does not fit."""
    own = compared_width(steady, find_bottleneck(steady))
    slower = [_slower(steady, other, own) for other in found.families]
    return (*slower, *(_infeasible(short) for short in found.infeasible))


def summary(found: Found) -> SearchSummary:
    """How far the search got."""
    return SearchSummary(
        plans=found.plans,
        simulated=found.simulated,
        proved=found.proved,
        gap=found.gap,
        seconds=found.search_s,
    )


def margins_of(found: Found) -> tuple[Margin, ...]:
    """By how much the seconds of each node may be off."""
    return tuple(Margin(name, made.low, made.high) for name, made in found.tolerances)


def given_of(found: Found) -> Given | None:
    """What was pinned and what it costs."""
    if not found.pins:
        return None
    pins = tuple((name, found.pins.text(name)) for name in found.pins.names())
    return Given(pins, found.unpinned)


def layout_text(placement: Placement) -> str:
    """Device counts: `8+8` side by side, `(8+8) then 16` one after another."""
    if isinstance(placement, Leaf):
        return str(len(placement.devices))
    if isinstance(placement, Split):
        return "+".join(str(len(devices_of(part))) for part in placement.parts)
    texts = [
        f"({layout_text(part)})" if isinstance(part, Split) else layout_text(part)
        for part in placement.parts
    ]
    return " then ".join(text for text, _same in groupby(texts))


def _slower(steady: Steady, other: Simulated, own: float) -> Rejected:
    theirs = Steady(
        steady.graph, steady.cluster, other.plan, steady.costs,
        other.events, other.iterations, other.seconds,
    )  # fmt: skip
    bottleneck = find_bottleneck(theirs)
    width = max(own, compared_width(theirs, bottleneck))
    return Rejected(
        mode=other.plan.mode,
        staleness=max((s.staleness for s in staleness_of(steady.graph, other.plan)), default=0),
        layout=layout_text(other.plan.placement),
        seconds=other.seconds,
        bound=other.candidate.bound,
        bottleneck=bottleneck,
        width=width,
        tie=tied(steady.seconds, other.seconds, width),
    )


def _infeasible(found: Infeasible) -> Rejected:
    reason = found.reason
    if (short := found.short) is not None:
        others = f" beside {short.others / 1e9:.1f} of others" if short.others else ""
        needed, available = short.needed / 1e9, short.available / 1e9
        reason = (
            f"{short.node}: needs {needed:.1f} GB{others}, "
            f"{available:.1f} usable, {short.over / 1e9:.1f} over"
        )
    mode = mode_of(found.placement)
    return Rejected(mode, None, layout_text(found.placement), reason=reason)
