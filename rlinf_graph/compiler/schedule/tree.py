"""Trees of turns and splits over items, from one open part to all leaves.

A tree has no devices yet. An open part stands for every tree over its items whose root is of one
kind. Turns follow the flow; a turn has no turn for a part and a split no split, since those would
be the same plan written twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

from rlinf_graph.compiler.schedule.instance import Instance, bits

Kind = Literal["leaf", "turn", "micro", "split", "open", "open turn", "open split", "open more"]

MANY = 5
"""Items whose partitions are not listed at once but block by block."""


@dataclass(frozen=True)
class Tree:
    """A part of a placement over a set of items, as bits.

    `turn` is once an iteration, `micro` once a micro-batch; `open` may become anything; what is
    `open more` becomes one or several further parts of what it stands in.
    """

    kind: Kind
    items: int
    parts: tuple[Tree, ...] = ()

    def __hash__(self) -> int:
        """Worked out once: trees are looked up by the million."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.kind, self.items, self.parts))

    @cached_property
    def complete(self) -> bool:
        """Whether nothing in it is open."""
        return not self.kind.startswith("open") and all(part.complete for part in self.parts)

    @cached_property
    def splits(self) -> bool:
        """Whether anything runs side by side."""
        return self.kind == "split" or any(part.splits for part in self.parts)

    def __str__(self) -> str:
        """`turn(split(0, 1), 2)`."""
        if self.kind == "leaf":
            return str(bits(self.items)[0])
        inner = self.parts or tuple(bits(self.items))
        return f"{self.kind}({', '.join(map(str, inner))})"


def expanded(tree: Tree, instance: Instance) -> Iterator[Tree]:
    """The trees with the first open part of a tree in each of its forms."""
    if tree.kind.startswith("open"):
        yield from _forms(tree, instance)
        return
    if tree.parts and tree.parts[-1].kind == "open more":
        yield from _more(tree, instance)
        return
    for place, part in enumerate(tree.parts):
        if not part.complete:
            for form in expanded(part, instance):
                yield Tree(
                    tree.kind, tree.items, (*tree.parts[:place], form, *tree.parts[place + 1 :])
                )
            return


def divided(sets: Sequence[int], instance: Instance) -> Tree | None:
    """Sets of items side by side, the items of each in turn; None where that is no tree."""
    parts: list[Tree] = []
    for items in sets:
        ordered = _turn_order([1 << item for item in bits(items)], instance)
        if ordered is None:
            return None
        leaves = tuple(Tree("leaf", item) for item in ordered)
        parts.append(leaves[0] if len(leaves) == 1 else Tree("turn", items, leaves))
        if _clash(instance.apart, ordered):
            return None
    if not parts or _clash(instance.together, list(sets)):
        return None
    parts.sort(key=lambda part: part.items & -part.items)
    return parts[0] if len(parts) == 1 else Tree("split", sum(sets), tuple(parts))


def _forms(tree: Tree, instance: Instance) -> Iterator[Tree]:
    if tree.items & (tree.items - 1) == 0:
        yield Tree("leaf", tree.items)
        return
    if instance.chunks > 1 and _in_step(tree.items, instance):
        parts = tuple(Tree("leaf", 1 << item) for item in _by_flow(tree.items, instance))
        yield Tree("micro", tree.items, parts)
    kinds: list[Literal["turn", "split"]] = []
    if tree.kind != "open split":
        kinds.append("turn")
    if tree.kind != "open turn":
        kinds.append("split")
    for kind in kinds:
        if tree.items.bit_count() > MANY:
            yield from _more(Tree(kind, tree.items, (Tree("open more", tree.items),)), instance)
            continue
        for blocks in partitions(tree.items):
            if (made := _of_blocks(kind, blocks, instance)) is not None:
                yield made


def _more(tree: Tree, instance: Instance) -> Iterator[Tree]:
    """A turn or split whose last part stands for several: with one more block, or as the last."""
    *known, last = tree.parts
    kind: Literal["turn", "split"] = "turn" if tree.kind == "turn" else "split"
    if known:
        made = _of_blocks(kind, [*(part.items for part in known), last.items], instance)
        if made is not None:
            yield made
    low, rivals = last.items & -last.items, instance.apart if kind == "turn" else instance.together
    others = rest = last.items ^ low
    while others:
        rest = (rest - 1) & others
        block = low | rest
        if not rivals or not any(rivals[item] & last.items & ~block for item in bits(block)):
            more = Tree("open more", last.items ^ block)
            yield Tree(kind, tree.items, (*known, _opened(kind, block), more))
        if not rest:
            return


def _of_blocks(
    kind: Literal["turn", "split"], blocks: list[int], instance: Instance
) -> Tree | None:
    """A turn or split of open parts; None where the blocks must not be that."""
    if _clash(instance.apart if kind == "turn" else instance.together, blocks):
        return None
    ordered = _turn_order(blocks, instance) if kind == "turn" else blocks
    if not ordered:
        return None
    return Tree(kind, sum(blocks), tuple(_opened(kind, block) for block in ordered))


def _opened(within: Literal["turn", "split"], items: int) -> Tree:
    """A part of a turn, or of a split, that may become anything else."""
    kind: Kind = "open split" if within == "turn" else "open turn"
    return Tree(kind if items & (items - 1) else "leaf", items)


def partitions(items: int) -> Iterator[list[int]]:
    """Every partition of a set into two blocks or more."""
    return (blocks for blocks in _partitions(items) if len(blocks) > 1)


def _partitions(items: int) -> Iterator[list[int]]:
    if not items:
        yield []
        return
    low = items & -items
    others = rest = items ^ low
    while True:
        for more in _partitions(others ^ rest):
            yield [low | rest, *more]
        if not rest:
            return
        rest = (rest - 1) & others


def _by_flow(items: int, instance: Instance) -> list[int]:
    return sorted(bits(items), key=lambda item: instance.step_of[item])


def _turn_order(blocks: list[int], instance: Instance) -> list[int] | None:
    """The blocks so that no data flows backwards; None when they feed each other."""
    left = sorted(blocks, key=lambda block: min(instance.step_of[i] for i in bits(block)))
    ordered: list[int] = []
    while left:
        free = [b for b in left if not any(_feeds(o, b, instance) for o in left if o != b)]
        if not free:
            return None
        ordered.append(free[0])
        left.remove(free[0])
    return ordered


def _clash(rivals: tuple[int, ...], blocks: list[int]) -> bool:
    """Whether an item of a block must not meet one of another block."""
    return bool(rivals) and any(
        rivals[item] & other
        for block in blocks
        for item in bits(block)
        for other in blocks
        if other != block
    )


def _feeds(source: int, target: int, instance: Instance) -> bool:
    return any(instance.feeds[item] & target for item in bits(source))


def _in_step(items: int, instance: Instance) -> bool:
    """Whether items can take turns once a micro-batch: none waits for another one outside."""
    members = bits(items)
    if instance.apart and any(instance.apart[item] & items for item in members):
        return False
    if not all(instance.steps[instance.step_of[item]].streams for item in members):
        return False
    for a, b in combinations(members, 2):
        between = instance.feeds[a] & _feeders(b, instance) | instance.feeds[b] & _feeders(
            a, instance
        )
        if between & ~items:
            return False
    return True


def _feeders(item: int, instance: Instance) -> int:
    return sum(1 << other for other in range(instance.items) if instance.feeds[other] >> item & 1)
