"""All trees that docs/scheduler.md allows over some items; a part of the oracle.

A tree is a leaf, `("leaf", item)`, or a kind with its parts, `("turn", (part, part))`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from rlinf_graph.compiler.schedule.instance import Instance

Node = tuple[str, Any]


def text(tree: Node) -> str:
    """A tree to read."""
    kind, parts = tree
    return str(parts) if kind == "leaf" else f"{kind}({', '.join(map(text, parts))})"


def items_of(tree: Node) -> tuple[int, ...]:
    """All items below."""
    kind, parts = tree
    return (parts,) if kind == "leaf" else tuple(i for part in parts for i in items_of(part))


def has_split(tree: Node) -> bool:
    """Whether anything stands side by side."""
    kind, parts = tree
    return kind == "split" or (kind != "leaf" and any(map(has_split, parts)))


# The trees.


def groupings(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """All ways to put items into groups."""
    if not items:
        yield []
        return
    for rest in groupings(items[1:]):
        yield [(items[0],), *rest]
        for at, group in enumerate(rest):
            yield [*rest[:at], (items[0], *group), *rest[at + 1 :]]


def waits_for(instance: Instance, item: int, other: int) -> bool:
    """Whether an item comes after another one in the flow, at once or by way of others."""
    return instance.step_of[other] in instance.before[instance.step_of[item]]


def in_turn(instance: Instance, groups: list[tuple[int, ...]]) -> list[tuple[int, ...]] | None:
    """Groups in the order of the flow, that of least step place first; None if there is none."""

    def feeds(group: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return any(waits_for(instance, b, a) for a in group for b in other)

    if meet(instance.apart, {item: at for at, group in enumerate(groups) for item in group}):
        return None
    left, order = list(groups), []
    while left:
        ready = [g for g in left if not any(feeds(other, g) for other in left if other != g)]
        if not ready:
            return None
        order.append(min(ready, key=lambda group: min(instance.step_of[i] for i in group)))
        left.remove(order[-1])
    return order


def side_by_side(instance: Instance, groups: list[tuple[int, ...]]) -> list[tuple[int, ...]] | None:
    """Groups in the order of their least items; None where two of them may not be apart."""
    where = {item: at for at, group in enumerate(groups) for item in group}
    return None if meet(instance.together, where) else sorted(groups, key=min)


def meet(rivals: Sequence[int], where: dict[int, int]) -> bool:
    """Whether two items that must not are in different groups."""
    return any(
        others >> o & 1 and where[o] != where[item]
        for item, others in enumerate(rivals)
        if item in where
        for o in where
    )


def may_be_micro(instance: Instance, items: tuple[int, ...]) -> bool:
    """Whether items may take turns once a micro-batch."""
    outside = [item for item in range(instance.items) if item not in items]
    return (
        instance.chunks > 1
        and not meet(instance.apart, {item: item for item in items})
        and all(instance.steps[instance.step_of[item]].streams for item in items)
        and not any(
            waits_for(instance, x, a) and waits_for(instance, b, x)
            for x in outside
            for a in items
            for b in items
        )
    )


def trees(instance: Instance, items: tuple[int, ...], under: str = "") -> Iterator[Node]:
    """All trees over some items that may be a part of a node of kind `under`."""
    if len(items) == 1:
        yield ("leaf", items[0])
        return
    if may_be_micro(instance, items):
        members = sorted(items, key=lambda item: instance.step_of[item])
        yield ("micro", tuple(("leaf", item) for item in members))
    for kind, ordered in (("turn", in_turn), ("split", side_by_side)):
        for groups in groupings(items) if kind != under else ():
            order = ordered(instance, groups) if len(groups) > 1 else None
            if order is not None:
                for parts in product(*(list(trees(instance, group, kind)) for group in order)):
                    yield (kind, parts)
