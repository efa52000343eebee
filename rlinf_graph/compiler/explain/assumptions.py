"""Figures that the plan rests on and nobody declared or measured."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.compiler.explain.report import Assumption
from rlinf_graph.compiler.explain.steady import Steady
from rlinf_graph.ir.graph import Node
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.work import Generate, HostWork, Lengths

KNOWN = ("declared", "measured")


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
        case _:
            pass
    if node.role is Role.SOURCE and node.volume:
        yield from _lengths(node, "tokens a sample", node.volume[0].lengths, None)


def _lengths(
    node: Node, quantity: str, lengths: Lengths, limit: float | None
) -> Iterator[Assumption]:
    if lengths.origin not in KNOWN:
        yield Assumption(node.name, quantity, lengths.mean, lengths.longest, limit, lengths.origin)
