"""The shapes that a placement can have: who takes turns with whom, who runs side by side.

A shape has no devices yet. Turns follow the flow of data; a turn has no turn for a part and a
split no split, since those would be the same plan written twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx

from rlinf_graph.ir.flow import downstream

Kind = Literal["leaf", "turn", "split"]


@dataclass(frozen=True)
class Shape:
    """A placement without devices. `names` are the nodes below it, in the order of the flow."""

    kind: Kind
    names: tuple[str, ...]
    parts: tuple[Shape, ...] = ()

    def __str__(self) -> str:
        """`turn(split(a, b), c)`."""
        if self.kind == "leaf":
            return self.names[0]
        return f"{self.kind}({', '.join(str(part) for part in self.parts)})"

    @property
    def depth(self) -> int:
        """Levels of turns and splits."""
        return 1 + max(part.depth for part in self.parts) if self.parts else 0


def shapes(names: Sequence[str], flow: nx.DiGraph[str]) -> Iterator[Shape]:
    """Every shape over the nodes, shallow ones first."""
    reach = {
        (a, b) for a in names for b in downstream(flow, a) if b in set(names)
    }  # pairs (producer, consumer), through any number of other nodes
    found = [*_shapes(tuple(names), reach, "turn"), *_shapes(tuple(names), reach, "split")]
    unique = {str(shape): shape for shape in found}
    yield from sorted(unique.values(), key=lambda shape: (shape.depth, len(shape.parts)))


def partitions(items: tuple[str, ...]) -> Iterator[list[tuple[str, ...]]]:
    """Every partition of the items into blocks, each block in the order of the items."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for smaller in partitions(rest):
        yield [(first,), *smaller]
        for i, block in enumerate(smaller):
            yield [*smaller[:i], (first, *block), *smaller[i + 1 :]]


def _shapes(
    names: tuple[str, ...], reach: set[tuple[str, str]], kind: Literal["turn", "split"]
) -> Iterator[Shape]:
    if len(names) == 1:
        yield Shape("leaf", names)
        return
    other = "split" if kind == "turn" else "turn"
    for blocks in partitions(names):
        if len(blocks) < 2:
            continue
        ordered = _in_turn_order(blocks, reach) if kind == "turn" else blocks
        if ordered is None:
            continue
        for parts in _choices(ordered, reach, other):
            yield Shape(kind, names, parts)


def _choices(
    blocks: Sequence[tuple[str, ...]], reach: set[tuple[str, str]], kind: Literal["turn", "split"]
) -> Iterator[tuple[Shape, ...]]:
    if not blocks:
        yield ()
        return
    for first in _shapes(blocks[0], reach, kind):
        for rest in _choices(blocks[1:], reach, kind):
            yield (first, *rest)


def _in_turn_order(
    blocks: Sequence[tuple[str, ...]], reach: set[tuple[str, str]]
) -> list[tuple[str, ...]] | None:
    """The blocks so that no data flows backwards; None when they feed each other."""
    left, ordered = list(blocks), list[tuple[str, ...]]()
    while left:
        free = [
            block for block in left
            if not any((a, b) in reach for other in left if other is not block
                       for a in other for b in block)
        ]  # fmt: skip
        if not free:
            return None
        ordered.append(free[0])
        left.remove(free[0])
    return ordered
