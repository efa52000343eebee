"""`rl.traced`: what any torch module asks of a device, found by running it without storage."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlinf_graph.dsl.builder import user_frame
from rlinf_graph.ir.diagnostic import fail, suggest
from rlinf_graph.ir.operations import Operations
from rlinf_graph.ir.span import Span
from rlinf_graph.ir.work import Volume

KNOWN = 32
"""Captured modules that are remembered: a plan asks for the same work again and again."""

Shapes = tuple[tuple[tuple[int, ...], str], ...]
"""Sizes and number format of each input."""

_known: OrderedDict[Any, tuple[Any, Operations]] = OrderedDict()


@dataclass(frozen=True)
class Input:
    """A tensor that a module takes.

    Attributes:
        sizes: numbers, or names of sizes: `samples` and `tokens` are known, others are given to
            `rl.traced`.
        dtype: torch's name of its number format.
    """

    sizes: tuple[int | str, ...]
    dtype: str = "float32"


def traced(
    build: Any,
    *inputs: Input,
    volume: Volume,
    batch: int = 1,
    backward: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> Operations:
    """The work of a torch module, operator by operator.

    The module runs once on torch's `meta` device, where tensors have shapes and no storage. What
    cannot be captured so is named in `Operations.gaps` and left to `rlinf-graph profile`.

    Args:
        build: a class or function without parameters that makes a module (under
            `torch.device("meta")`, so that its weights take no memory), a module (its weights are
            not touched), or a function of tensors.
        inputs: of the module, in their order.
        volume: what comes to the node: `samples` go through the module; `tokens` is its mean
            length.
        batch: samples of one call on one device.
        backward: gradients too: of the weights, or of floating inputs where there are none.
        sizes: of other names in `inputs`.

    Raises:
        CompileError: RG0512, for a module that raises and for a size that is not known.
    """
    mean = max(1, round(volume.lengths.mean))
    values = {"samples": batch, "tokens": mean, **(sizes or {})}
    shapes = tuple((_resolved(given, values), given.dtype) for given in inputs)
    made = _remembered(build, shapes, batch, backward)
    return replace(made, samples=volume.samples)


def _remembered(build: Any, shapes: Shapes, batch: int, backward: bool) -> Operations:
    """What was captured before; anew where a key cannot be told from another."""
    key = _identity(build), shapes, batch, backward
    try:
        hash(key)
    except TypeError:
        return _captured(build, shapes, batch, backward)
    if key not in _known:
        _known[key] = build, _captured(build, shapes, batch, backward)
    _known.move_to_end(key)
    while len(_known) > KNOWN:
        _known.popitem(last=False)
    return _known[key][1]


def _captured(build: Any, shapes: Shapes, batch: int, backward: bool) -> Operations:
    from rlinf_graph.nodes.tracing.capture import capture  # loads torch

    return capture(build, shapes, backward=backward, samples=batch)


def _resolved(given: Input, values: Mapping[str, int]) -> tuple[int, ...]:
    for size in given.sizes:
        if isinstance(size, str) and size not in values:
            message = f"nothing says how large `{size}` is"
            hint = f"{suggest(size, values)}; others come as sizes={{...}}"
            raise fail("RG0512", message, Span.of_frame(user_frame()), help=(hint,))
    return tuple(values[size] if isinstance(size, str) else size for size in given.sizes)


def _identity(build: Any) -> Any:
    """What a module is remembered by: a lambda that is made anew in each call is the same."""
    if isinstance(build, types.FunctionType):
        cells = tuple(cell.cell_contents for cell in build.__closure__ or ())
        used = tuple((n, build.__globals__.get(n)) for n in sorted(_names(build.__code__)))
        return build.__code__, build.__defaults__, cells, used
    if isinstance(build, functools.partial):
        return _identity(build.func), build.args, tuple(sorted(build.keywords.items()))
    return build


def _names(code: types.CodeType) -> set[str]:
    """Names that a function and those inside it look up."""
    inner = (_names(made) for made in code.co_consts if isinstance(made, types.CodeType))
    return {*code.co_names}.union(*inner)
