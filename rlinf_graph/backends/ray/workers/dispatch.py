"""Which worker of a group gets which arguments, and what a call gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.packed import concat, select

Spread = Literal["broadcast", "shard", "rank0"]
Collect = Literal["all", "concat", "rank0"]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Method = TypeVar("Method", bound=Callable[..., Any])
_NAME = "_rlinf_graph_dispatch"


@dataclass(frozen=True)
class Dispatch:
    """How a call on a group becomes calls on its workers.

    Attributes:
        spread: `broadcast` gives every worker all arguments; `shard` cuts batches, tensors,
            arrays, lists and tuples along their first axis into one part for each worker, in the
            order of ranks, sizes differing by one at most, and gives everything else to all;
            `rank0` calls the first worker only.
        collect: `all` gives a list in the order of ranks; `concat` joins the results along their
            first axis; `rank0` gives the first worker's. A `rank0` spread gives its one result.
    """

    spread: Spread = "broadcast"
    collect: Collect = "all"

    def __post_init__(self) -> None:
        """Refuse misspelt choices."""
        for given, known in ((self.spread, Spread), (self.collect, Collect)):
            if given not in get_args(known):
                raise ValueError(f"`{given}` is none of {', '.join(get_args(known))}")

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any], n: int) -> list[Arguments]:
        """The arguments of each of `n` workers; one element for all of them unless they differ.

        Raises:
            ValueError: when the values to be cut have different lengths, or there are none.
        """
        if self.spread != "shard":
            return [(tuple(args), dict(kwargs))]
        named = [*((f"argument {at}", value) for at, value in enumerate(args)), *kwargs.items()]
        lengths = {name: len(value) for name, value in named if _can_be_cut(value)}
        if len(set(lengths.values())) != 1:
            told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"arguments to shard need one length: {told or 'there are none'}")
        total = max(lengths.values())
        bounds = [total * rank // n for rank in range(n + 1)]
        return [
            (tuple(_cut(v, a, b) for v in args), {k: _cut(v, a, b) for k, v in kwargs.items()})
            for a, b in pairwise(bounds)
        ]

    def result(self, values: list[Any]) -> Any:
        """What the caller gets of the workers' results, which come in the order of ranks."""
        if self.spread == "rank0" or self.collect == "rank0":
            return values[0]
        return joined(values) if self.collect == "concat" else values


def dispatched(
    spread: Spread = "broadcast", collect: Collect = "all"
) -> Callable[[Method], Method]:
    """Say for a worker's method how a call on the group is spread and collected."""
    rule = Dispatch(spread, collect)

    def mark(method: Method) -> Method:
        setattr(method, _NAME, rule)
        return method

    return mark


def rule_of(method: Callable[..., Any]) -> Dispatch:
    """What `dispatched` said of a method; the default for others."""
    return getattr(method, _NAME, Dispatch())


def joined(values: list[Any]) -> Any:
    """Batches, tensors, arrays, lists or tuples, one after another.

    Raises:
        TypeError: for values of other or of different kinds.
    """
    first = values[0]
    kinds = {type(value).__name__ for value in values}
    if len(kinds) > 1 or not _can_be_cut(first):
        raise TypeError(f"results of kind {', '.join(sorted(kinds))} cannot be joined")
    if isinstance(first, Batch):
        return concat(values)
    if isinstance(first, torch.Tensor):
        return torch.cat(values)
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    return type(first)(item for value in values for item in value)


def _can_be_cut(value: Any) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim > 0
    return isinstance(value, Batch) or type(value) in (list, tuple)


def _cut(value: Any, start: int, stop: int) -> Any:
    if not _can_be_cut(value):
        return value
    return select(value, slice(start, stop)) if isinstance(value, Batch) else value[start:stop]
