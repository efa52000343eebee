"""How long responses are when only the first to finish of each prompt are kept."""

from __future__ import annotations

import math

from rlinf_graph.ir.work import Lengths

LEAST = 50
"""Quantiles of the result, at least: the tail of a few would be lost."""


def first_of(lengths: Lengths, samples: int, keep: int) -> tuple[Lengths, Lengths]:
    """The lengths of the `keep` shortest of `samples` responses, and of all when decoding stops.

    Of `samples` draws from a distribution with distribution function F, the i-th shortest is at
    most x with the probability that at least i of them are: `P(Binomial(samples, F(x)) >= i)`
    (David and Nagaraja 2003, Order Statistics, eq. 2.1.3). Those kept mix the orders 1 to `keep`
    in equal parts; the others are decoded for as long as the last that is kept.

    Args:
        lengths: of one response; its quantiles are taken for equally probable values.
        samples: responses to a prompt.
        keep: at least 1, at most `samples`.

    Returns:
        Of those kept, and of all that are decoded, as quantiles in the middle of equal steps of
        probability.
    """
    if keep == samples:
        return lengths, lengths
    values = sorted(lengths.quantiles)
    count = len(values)
    kept, decoded = [0.0] * (count + 1), [0.0] * (count + 1)
    for place in range(1, count + 1):
        at_least = _at_least(samples, place / count)
        kept[place] = sum(at_least[1 : keep + 1]) / keep
        decoded[place] = (sum(at_least[1:keep]) + (samples - keep + 1) * at_least[keep]) / samples
    steps = max(LEAST, count)
    return (
        Lengths(_quantiles(values, kept, steps), lengths.origin),
        Lengths(_quantiles(values, decoded, steps), lengths.origin),
    )


def _at_least(trials: int, chance: float) -> list[float]:
    """`P(Binomial(trials, chance) >= i)` for i from 0 to `trials`."""
    exactly = [
        math.comb(trials, i) * chance**i * (1 - chance) ** (trials - i) for i in range(trials + 1)
    ]
    return [math.fsum(exactly[i:]) for i in range(trials + 1)]


def _quantiles(values: list[float], below: list[float], steps: int) -> tuple[float, ...]:
    """Of a distribution over `values`, the first k of which have probability `below[k]`."""
    found: list[float] = []
    for step in range(steps):
        place = 0
        while place + 1 < len(values) and below[place + 1] < (step + 0.5) / steps:
            place += 1
        found.append(values[place])
    return tuple(found)
