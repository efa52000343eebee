"""Plans that cost less: the fastest one for fewer and fewer devices.

What a plan costs is the price of the devices it uses for as long as an iteration takes. The best
plan of a budget of devices tells the next ones: each type a tenth smaller, or by one device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlinf_graph.ir.cluster import Cluster

MOST_BUDGETS = 48
HOUR = 3600.0

Budget = tuple[int, ...]
"""Devices of each node group."""


@dataclass(frozen=True)
class Priced:
    """The best plan of a budget.

    Attributes:
        used: devices of each node group that it uses.
        seconds: of an iteration.
        price: of an iteration, in the currency of the cluster file.
        budget: for which it is the best.
    """

    used: Budget
    seconds: float
    price: float
    budget: Budget


def price_of(cluster: Cluster, used: Sequence[int], seconds: float) -> float:
    """What an iteration costs."""
    rates = (group.price_per_hour or 0.0 for group in cluster.groups)
    return seconds / HOUR * sum(n * rate for n, rate in zip(used, rates, strict=True))


def frontier(
    cluster: Cluster, best: Callable[[Budget], tuple[Budget, float] | None]
) -> list[Priced]:
    """The plans of which no other one found is both faster and cheaper, fastest first.

    Args:
        cluster: with prices.
        best: devices used by the fastest plan within a budget, and its seconds; None without one.
    """
    todo: list[Budget] = [tuple(group.size for group in cluster.groups)]
    seen, found = set(todo), list[Priced]()
    while todo and len(seen) <= MOST_BUDGETS:
        budget = todo.pop(0)
        made = best(budget)
        if made is None:
            continue
        used, seconds = made
        found.append(Priced(used, seconds, price_of(cluster, used, seconds), budget))
        for kind, count in enumerate(used):
            less = (*used[:kind], min(count - 1, count * 9 // 10), *used[kind + 1 :])
            if count and sum(less) and less not in seen:
                seen.add(less)
                todo.append(less)
    found.sort(key=lambda point: (point.seconds, point.price))
    kept: list[Priced] = []
    for point in found:
        if not kept or point.price < kept[-1].price * (1 - 1e-9):
            kept.append(point)
    return kept
