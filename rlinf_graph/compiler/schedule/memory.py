"""Whether the nodes on a device fit in it, and what has to leave when they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from rlinf_graph.compiler.schedule.layouts import Option
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.plan import Leaf

RESERVED = 0.02
"""Part of a device's memory that nobody may plan with: fragmentation of the allocator.

An assumption. Context and communication buffers are a part of every node's own memory.
"""


@dataclass(frozen=True)
class Shortage:
    """The device that lacks most.

    Attributes:
        over: bytes missing.
        needed, available: bytes.
        device: its number.
        node: the node that needs most on it.
        others: bytes that other nodes keep on it meanwhile.
    """

    over: float
    needed: float
    available: float
    device: int
    node: str
    others: float


def find_offloads(
    leaves: list[Leaf], options: Mapping[str, Option], cluster: Cluster, shared: Mapping[str, str]
) -> frozenset[str] | Shortage:
    """The cheapest set of nodes to offload between turns so that everything fits.

    Args:
        leaves: the nodes with their devices.
        options: their layouts.
        cluster: how much memory there is.
        shared: nodes that use another one's engine and keep nothing of their own.
    """
    short = shortage(leaves, options, cluster, shared, frozenset())
    if short is None:
        return frozenset()
    names = [leaf.node for leaf in leaves if leaf.node not in shared]
    shares = {
        leaf.node
        for leaf in leaves
        if any(other is not leaf and set(other.devices) & set(leaf.devices) for other in leaves)
    }
    movable = [name for name in names if name in shares]
    sets = [frozenset(c) for n in range(1, len(movable) + 1) for c in combinations(movable, n)]
    fitting = [s for s in sets if shortage(leaves, options, cluster, shared, s) is None]
    if not fitting:
        everything = frozenset(movable)
        return shortage(leaves, options, cluster, shared, everything) or short
    return min(fitting, key=lambda s: (_switch_seconds(s, options), sorted(s)))


def shortage(
    leaves: list[Leaf],
    options: Mapping[str, Option],
    cluster: Cluster,
    shared: Mapping[str, str],
    offloaded: frozenset[str],
) -> Shortage | None:
    """The worst device, when one has too little memory."""
    worst: Shortage | None = None
    for device in representatives(leaves):
        here = [leaf.node for leaf in leaves if device in leaf.devices]
        kept = {n: options[n].resident for n in here if n not in shared}
        available = cluster.group_of(device).device.memory * (1 - RESERVED)
        for node in here:
            others = sum(size for n, size in kept.items() if n != node and n not in offloaded)
            own = kept.get(node, kept.get(shared.get(node, ""), 0.0)) + options[node].working
            if node in shared and shared[node] not in offloaded:
                others -= kept.get(shared[node], 0.0)
            over = others + own - available
            if over > 0 and (worst is None or over > worst.over):
                worst = Shortage(over, others + own, available, device, node, others)
    return worst


def representatives(leaves: list[Leaf]) -> list[int]:
    """Devices among which every combination of nodes occurs that occurs at all.

    Blocks of consecutive devices begin new combinations only where one of them begins.
    """
    consecutive = all(x.devices[-1] - x.devices[0] == len(x.devices) - 1 for x in leaves)
    if consecutive:
        return sorted({leaf.devices[0] for leaf in leaves})
    return sorted({device for leaf in leaves for device in leaf.devices})


def _switch_seconds(names: frozenset[str], options: Mapping[str, Option]) -> float:
    return sum(options[n].cost.load_s + options[n].cost.offload_s for n in names)
