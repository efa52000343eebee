"""Records every operator that a run on the `meta` device launches, and what lives meanwhile."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlinf_graph.ir.operations import Gap, Operation
from rlinf_graph.ir.span import shown_path
from rlinf_graph.nodes.tracing.operators import (
    NOTHING,
    base_name,
    dtype_name,
    flops_of,
    kind_of,
    size,
    traffic,
)
from rlinf_graph.nodes.tracing.values import Values

OWN = (str(Path(inspect.getfile(torch)).parent), str(Path(__file__).parent))
"""Folders whose frames are not the user's."""


class Uncapturable(Exception):
    """The run cannot go on: what has been seen up to here counts."""


class Meter(TorchDispatchMode):
    """Sees what autograd and the user's code launch, forward and backward.

    `make_fx` records in the same place; it drops what nothing reads, which a device computes all
    the same, and has nothing to show where a run ends early.

    Attributes:
        gaps: what could not be captured.
        peak: bytes of tensors that lived at once, weights left out.
        used: ids of the tensors that operators took.
        module: path of the module at work.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        """Nothing has run; `weights` are there before and after."""
        super().__init__()
        self._counts: Counter[Operation] = Counter()
        self._values = Values()
        self.gaps: list[Gap] = []
        self.peak = self._live = 0
        self._storages: dict[int, Any] = {_key(tensor): None for tensor in weights}
        self.used: set[int] = set()
        self.module = ""

    @property
    def launches(self) -> int:
        """Launches so far."""
        return self._counts.total()

    @property
    def table(self) -> tuple[Operation, ...]:
        """What has been launched, equal operations together, in the order of the first of them."""
        return tuple(replace(made, count=count) for made, count in self._counts.items())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator without storage and note it."""
        kwargs = dict(kwargs or {})
        if torch.Tag.data_dependent_output in func.tags:
            if base_name(func) == "_local_scalar_dense" and self._values.known(args[0]):
                return self._values.item(args[0])
            self.end(func, "the code depends on a tensor's values")
        made = self._decomposed(func, args, kwargs)
        if made is not NotImplemented:
            return made
        kwargs = _kept_here(kwargs)
        made = self._run(func, args, kwargs)
        self._note(func, args, kwargs, made)
        self._values.follow(func, base_name(func), args, kwargs, made)
        return made

    def attention(
        self, inputs: Sequence[Tensor], made: Sequence[Tensor], flops: float, *, causal: bool
    ) -> None:
        """Note a fused attention, which never stores its square."""
        self.track(made)
        operation = Operation(
            kind="causal attention" if causal else "attention",
            name="scaled_dot_product_attention" + ("_backward" if len(made) > 1 else ""),
            shapes=tuple(tuple(tensor.shape) for tensor in inputs),
            dtype=dtype_name(inputs[0].dtype),
            flops=flops,
            read=sum(map(size, inputs)),
            written=sum(map(size, made)),
        )
        self._counts[operation] += 1
        self.used.update(map(id, inputs))

    def gap(self, what: str, reason: str) -> None:
        """Name something that is not captured."""
        made = Gap(what, self.module, _where(), reason)
        if made not in self.gaps:
            self.gaps.append(made)

    def end(self, func: Any, reason: str) -> NoReturn:
        """Name something that nothing after it can be captured for.

        Raises:
            Uncapturable: always.
        """
        self.gap(func if isinstance(func, str) else _name(func), reason)
        raise Uncapturable(reason)

    def _decomposed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator is made of, where torch has no kernel of its own for it."""
        if func.namespace != "aten" or not _is_composite(func):
            return NotImplemented
        with self:
            return func.decompose(*args, **kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if torch.Tag.dynamic_output_shape in func.tags and _selects(func, args):
            if base_name(func) not in ("nonzero", "index", "masked_select"):
                self.end(func, "the shape of its result depends on values")
            self.gap(_name(func), "the shape of its result depends on values: all taken as chosen")
        if base_name(func) == "masked_select":
            shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
            return args[0].new_empty(prod(shape))
        try:
            return func(*args, **kwargs)
        except Exception as error:
            if func.namespace in ("aten", "prims") and not isinstance(error, NotImplementedError):
                raise
            return self._in_place_of(func, args)

    def _in_place_of(self, func: Any, args: Any) -> Any:
        """For an operator without a kernel for shapes alone: something like its first tensor."""
        first = next((t for t in tree_leaves(args) if isinstance(t, Tensor)), None)
        returns = [str(made.type) for made in func._schema.returns]
        if first is None or returns != ["Tensor"]:
            self.end(func, "no kernel for the meta device")
        self.gap(
            _name(func),
            "no kernel for the meta device (torch.library.register_fake); "
            "its result is taken to be like its first tensor",
        )
        return torch.empty_like(first)

    def _note(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        self.used.update(map(id, inputs))
        before = {_key(tensor) for tensor in inputs}
        self.track(outputs)
        mutable = func._schema.is_mutable
        if base_name(func) in NOTHING and not mutable:
            return
        if not mutable and all(_key(tensor) in before for tensor in outputs):
            return  # a view
        changed = outputs or inputs[:1]
        kind, flops = kind_of(func), flops_of(func, args, kwargs, made)
        if flops is None and not any(gap.what == _name(func) for gap in self.gaps):
            self.gap(_name(func), "no formula for its operations: only its bytes are counted")
        read, written = traffic(func, kind, inputs, changed)
        floating = [t for t in (*changed, *inputs) if t.is_floating_point()]
        operation = Operation(
            kind=kind,
            name=_name(func),
            shapes=tuple(tuple(tensor.shape) for tensor in inputs),
            dtype=dtype_name((floating or changed or [torch.empty(0)])[0].dtype),
            flops=flops or 0.0,
            read=read,
            written=written,
        )
        self._counts[operation] += 1

    def track(self, tensors: Sequence[Tensor]) -> None:
        """Count tensors as alive until nothing holds their storage."""
        for tensor in tensors:
            key = _key(tensor)
            if key in self._storages:
                continue
            storage = tensor.untyped_storage()
            self._live += storage.nbytes()
            self._storages[key] = weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self._live)

    def kept(self, gradient: Tensor) -> None:
        """Count a tensor as a weight's gradient from here on, not among those that come and go."""
        end = self._storages.get(_key(gradient))
        if end is not None and end.detach():
            self._live -= gradient.untyped_storage().nbytes()

    def _freed(self, key: int, held: int) -> None:
        self._storages.pop(key, None)
        self._live -= held


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _name(func: Any) -> str:
    return func._schema.name.replace("::", ".")


def _is_composite(func: Any) -> bool:
    """Whether devices have no kernel for an operator, and run what it is made of."""
    composite = func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    return composite and not func.has_kernel_for_dispatch_key(DispatchKey.CPU)


def _selects(func: Any, args: Any) -> bool:
    """Whether the values decide how many elements come out: indexing does so by masks only."""
    if base_name(func) != "index":
        return True
    masks = (torch.bool, torch.uint8)
    return any(t.dtype in masks for t in args[1] if isinstance(t, Tensor))


def _kept_here(kwargs: dict[str, Any]) -> dict[str, Any]:
    """A tensor that is sent to another device stays: where it lies does not count."""
    if "device" in kwargs and kwargs["device"] is not None:
        return {**kwargs, "device": torch.device("meta")}
    return kwargs


def _where() -> str:
    """The innermost line of the user's on the stack; empty where torch itself is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(OWN[1]) and frame.f_code.co_name == "capture":
            break
        if not file.startswith((*OWN, "<")):
            return f"{shown_path(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
