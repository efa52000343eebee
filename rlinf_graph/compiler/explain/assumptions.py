"""Figures that the plan rests on and nobody declared or measured."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.compiler.explain.report import Assumption
from rlinf_graph.compiler.explain.steady import Steady
from rlinf_graph.ir.graph import Node
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.operations import Operations
from rlinf_graph.ir.work import Generate, HostWork, Lengths

KNOWN = ("declared", "measured")
MEASURED = ("profiled",)


def assumptions_of(steady: Steady) -> tuple[Assumption, ...]:
    """Lengths always, since all else follows from them; host seconds where they matter."""
    return tuple(made for node in steady.graph.nodes for made in _of(steady, node))


def _of(steady: Steady, node: Node) -> Iterator[Assumption]:
    match node.work:
        case Generate(response=lengths):
            yield from _lengths(node, "response tokens", lengths, node.option("max_tokens"))
        case HostWork() as work if not steady.cheap(node) and work.origin not in KNOWN:
            seconds = work.seconds_per_sample
            yield Assumption(
                node.name, "host seconds a sample", seconds, seconds, None, work.origin
            )
        case Operations() as work if work.gaps and steady.cost(node.name).origin not in MEASURED:
            yield from _gaps(node, work)
        case _:
            pass
    if node.role is Role.SOURCE and node.volume:
        yield from _lengths(node, "tokens a sample", node.volume[0].lengths, None)


def _gaps(node: Node, work: Operations) -> Iterator[Assumption]:
    """What a trace could not see, and how to find out."""
    for gap in work.gaps:
        hidden, origin = float(gap.hidden), f"{gap}; `rlinf-graph profile` measures them"
        total = float(work.launches + sum(g.hidden for g in work.gaps))
        yield Assumption(node.name, "launches not captured", hidden, hidden, total, origin)


def _lengths(
    node: Node, quantity: str, lengths: Lengths, limit: float | None
) -> Iterator[Assumption]:
    if lengths.origin not in KNOWN:
        yield Assumption(node.name, quantity, lengths.mean, lengths.longest, limit, lengths.origin)
