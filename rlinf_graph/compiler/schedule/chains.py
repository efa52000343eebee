"""Items that are never at work at the same time, on the way from weights to the next ones.

A reader of weights waits for the trainer that makes them, and the trainer, by way of others, for
the reader. All that has to be done one after another on that way has to be done once in as many
iterations as the weights may be late, plus one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from rlinf_graph.compiler.schedule.instance import Instance

MOST_CHAINS = 6
"""That are looked at: those with the largest sums at their fastest."""


@dataclass(frozen=True)
class Chain:
    """Items that work one after another, as bits, once in so many iterations.

    The first of them is the `reader`.
    """

    items: int
    laps: int
    reader: int


def chains_of(instance: Instance) -> tuple[Chain, ...]:
    """The chains that may decide how long an iteration takes."""
    found: dict[Chain, float] = {}
    least = [float(c.seconds.min()) if len(c.seconds) else 0.0 for c in instance.choices]
    for reader, step in enumerate(instance.steps):
        for read in step.reads:
            laps = 1 + min(max(instance.lags), read.most) + read.late
            for path in _paths(instance, reader, read.trainer):
                for items in filter(None, _in_line(instance, path)):
                    chain = Chain(sum(1 << item for item in items), laps, items[0])
                    found[chain] = sum(least[item] for item in items) / laps
    kept = [c for c in found if not any(_within(c, other) for other in found if other != c)]
    kept.sort(key=lambda chain: (-found[chain], chain.items))
    return tuple(kept[:MOST_CHAINS])


def _within(chain: Chain, other: Chain) -> bool:
    same = chain.items & other.items == chain.items and chain.reader == other.reader
    return same and other.laps <= chain.laps


def _paths(instance: Instance, first: int, last: int) -> Iterator[list[int]]:
    """The ways from a step to another one, by number."""
    if first == last:
        yield [first]
        return
    for step in instance.steps[last].inputs:
        if step == first or first in instance.before[step]:
            for path in _paths(instance, first, step):
                yield [*path, last]


def _in_line(instance: Instance, path: list[int]) -> Iterator[tuple[int, ...]]:
    """Items of a path of which each begins when the one before is done.

    Where samples stream, of those that are at work together only one is taken.
    """
    together: list[list[int]] = [[]]
    for place in path:
        step = instance.steps[place]
        alone = instance.chunks == 1 or step.barrier
        if alone and together[-1]:
            together.append([])
        if step.item >= 0:
            together[-1].append(step.item)
        if (alone or step.whole) and together[-1]:
            together.append([])
    yield from product(*(items for items in together if items))
