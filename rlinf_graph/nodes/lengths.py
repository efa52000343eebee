"""Distributions of response lengths to plan with: declared, read from a file, or assumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.ir.diagnostic import Diagnostic
from rlinf_graph.ir.graph import Node
from rlinf_graph.ir.work import Lengths

DEFAULT_SPREAD = (0.08, 0.14, 0.19, 0.24, 0.30, 0.37, 0.46, 0.60, 0.85, 1.0)
"""Deciles of response length over the token limit where none are declared: mean 0.42, with a tail
at the limit. An assumption, and printed as one."""

QUANTILES = 20
PARTS = 50
"""Parts that measured lengths are averaged in: the longest 2 % are one of them."""

FIELDS = ("response_tokens", "response_length", "length")
"""Of an object on a line of a file of lengths, the first that is there."""

Declared = tuple[float, ...] | float | str | None
"""As the option `lengths` takes it; a text is the path of a JSONL file."""


def response_lengths(max_tokens: int, lengths: Declared) -> Lengths:
    """The distribution to plan with: what the user declares or measured, else an assumed one."""
    if isinstance(lengths, str):
        try:
            measured = read_lengths(lengths)
        except (OSError, ValueError):  # `check_lengths` reports it
            return response_lengths(max_tokens, None)
        return Lengths(tuple(min(t, float(max_tokens)) for t in measured), f"measured: {lengths}")
    if lengths is None:
        return Lengths(tuple(max_tokens * q for q in DEFAULT_SPREAD), "declared default")
    quantiles = lengths if isinstance(lengths, tuple) else (lengths,)
    return Lengths(tuple(float(q) for q in quantiles), "declared")


def check_lengths(node: Node) -> Iterator[Diagnostic]:
    """The declared lengths are numbers of tokens, or a file of them."""
    given = node.option("lengths")
    if isinstance(given, str):
        try:
            read_lengths(given)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            message = f"`lengths` of `{node.name}` cannot be read from `{given}`: {reason}"
            help_text = (
                f"one number of tokens a line, or objects with one of {', '.join(FIELDS)}",
            )
            yield Diagnostic("RG0104", message, node.at("lengths"), help=help_text)
        return
    quantiles = given if isinstance(given, tuple) else () if given is None else (given,)
    if given == () or not all(0 < q < float("inf") for q in quantiles):
        message = f"`lengths` of `{node.name}` are {given}; they are numbers of tokens over 0"
        yield Diagnostic("RG0104", message, node.at("lengths"))


def read_lengths(path: str) -> tuple[float, ...]:
    """Response lengths of a JSONL file, as the means of equal parts of them in ascending order.

    Args:
        path: a line holds a number of tokens, or an object with one of `FIELDS`.

    Returns:
        At most `PARTS` lengths in tokens, of equal probability, with the file's mean.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for one without lengths, naming the line.
    """
    lines = Path(path).read_text("utf-8").splitlines()
    found = [_length(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError("it has no lines")
    ordered, parts = np.sort(np.asarray(found)), min(PARTS, len(found))
    # Parts of equal probability: a length on the border of two belongs to both by its share.
    total = np.concatenate(([0.0], np.cumsum(ordered)))
    at = np.linspace(0, len(ordered), parts + 1)
    sums = np.diff(np.interp(at, np.arange(len(total)), total))
    return tuple((sums * parts / len(ordered)).tolist())


def _length(line: str, number: int) -> float:
    try:
        made = json.loads(line)
        if isinstance(made, dict):
            made = next(made[field] for field in FIELDS if field in made)
        length = float(made)
    except (ValueError, TypeError, StopIteration):
        raise ValueError(f"line {number} has no length") from None
    if not 0 < length < float("inf"):
        raise ValueError(f"line {number} has a length of {length:g}")
    return length


@lru_cache(maxsize=4096)
def log_normal(
    mean: float, limit: float, width: float, count: int = QUANTILES
) -> tuple[float, ...]:
    """Quantiles of a log-normal distribution that is cut at a limit, with a given mean.

    Args:
        mean: tokens of the average response; less than `limit`.
        limit: tokens at which sampling stops.
        width: standard deviation of the logarithm before the cut; 0 for equal lengths.
        count: quantiles, at equal steps of probability.

    Returns:
        Lengths in tokens, ascending; the mean is kept to 0.1 %.
    """
    if width <= 0 or mean >= limit:
        return (min(mean, limit),) * count
    spread = np.exp(width * _normal(count))
    low, high = np.log(mean) - 6 * width, np.log(limit) + 8 * width
    for _ in range(40):
        middle = (low + high) / 2
        made = float(np.minimum(np.exp(middle) * spread, limit).mean())
        low, high = (middle, high) if made < mean else (low, middle)
    return tuple(np.minimum(np.exp(low) * spread, limit).tolist())


@lru_cache(maxsize=8)
def _normal(count: int) -> NDArray[np.float64]:
    """Quantiles of the standard normal distribution, at the middles of equal steps."""
    return np.asarray([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
