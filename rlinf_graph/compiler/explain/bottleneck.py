"""What decides how long an iteration takes."""

from __future__ import annotations

from rlinf_graph.compiler.explain.report import Bottleneck, Lane, Limit, Resource
from rlinf_graph.compiler.explain.steady import Steady
from rlinf_graph.compiler.lower import is_host
from rlinf_graph.ir.flow import producers_of
from rlinf_graph.ir.graph import Node
from rlinf_graph.ir.node_type import Role

FULL = 0.97
"""A resource or chain that takes this share of an iteration decides its length."""


def find_bottleneck(steady: Steady) -> Bottleneck:
    """The busiest lane, the longest chain, and which of them it is."""
    length = steady.window[1] - steady.window[0]
    lanes = sorted(steady.lanes, key=lambda lane: -lane.busy_s)
    chain, seconds = chain_of(steady)
    used = [lane for lane in steady.lanes if lane.count and lane.segments]
    devices = sum(lane.count for lane in used)
    busy = sum(lane.count * lane.busy_s for lane in used)
    return Bottleneck(
        kind=_kind(lanes[0], seconds / (steady.lag + 1), length),
        busiest=_resource(lanes[0]),
        next=_resource(lanes[1]) if len(lanes) > 1 and lanes[1].segments else None,
        chain=tuple(node.name for node in chain),
        chain_s=seconds,
        staleness=steady.lag,
        waiting=max(0.0, 1 - busy / (devices * length)) if devices and length else 0.0,
    )


def chain_of(steady: Steady) -> tuple[list[Node], float]:
    """From who samples to who trains, always by the input that came last; and its seconds.

    The seconds are those of the iteration shown, from the chain's first event (weights are taken
    over) to its last (they are there for the next).
    """
    trainers = list(steady.graph.trainers().values())
    if not trainers:
        return [], 0.0
    node = max(trainers, key=lambda n: _last(steady, n))
    end, chain = _last(steady, node), [node]
    while producers := [
        made
        for made in producers_of(steady.graph, node)
        if made.role is not Role.SOURCE and steady.events_of(made.name)
    ]:
        node = max(producers, key=lambda n: _last(steady, n))
        chain.append(node)
    start = min((e.start for e in steady.events_of(chain[-1].name)), default=end)
    shown = [n for n in reversed(chain) if not steady.cheap(n)]
    return shown, end - start


def _last(steady: Steady, node: Node) -> float:
    return max((event.end for event in steady.events_of(node.name)), default=0.0)


def _kind(busiest: Lane, cycle: float, length: float) -> Limit:
    if busiest.busy_s >= FULL * length:
        return "devices" if busiest.count else "host"
    return "latency" if cycle >= FULL * length else "mixed"


def _resource(lane: Lane) -> Resource:
    return Resource(lane.where, lane.busy_s, tuple(lane.by_node()))


def unfolded(steady: Steady) -> tuple[Lane, ...]:
    """The lanes worth showing: devices, and host nodes that take their time."""
    cheap = {n.name for n in steady.graph.nodes if is_host(n) and steady.cheap(n)}
    return tuple(
        lane for lane in steady.lanes
        if lane.count or any(segment.node not in cheap for segment in lane.segments)
    )  # fmt: skip
