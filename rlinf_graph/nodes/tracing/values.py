"""Values of tensors that follow from constants alone, such as positions; data have none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

SOURCES = {"arange", "full", "zeros", "ones", "eye", "scalar_tensor", "linspace"}
"""Operators that make known values out of nothing."""

MOST = 2**20
"""Elements of a tensor whose values are worked out."""


class Values:
    """Real tensors beside those without storage, as far as they are known.

    Code that asks whether positions are consecutive, or a mask it made itself is full, gets its
    answer, as it would on a device.
    """

    def __init__(self) -> None:
        """Nothing is known."""
        self._of = WeakIdKeyDictionary()

    def known(self, tensor: Tensor) -> bool:
        """Whether the values of a tensor are."""
        return tensor in self._of

    def item(self, tensor: Tensor) -> Any:
        """The one value of a known tensor."""
        return self._of[tensor].item()

    def follow(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """Work out what an operator does to values; forget what it changes by unknown ones."""
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        source = not inputs and name in SOURCES
        if not source and not (inputs and all(map(self.known, inputs))):
            if func._schema.is_mutable and inputs:
                self._forget(inputs[0])
            return
        outputs = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        if sum(t.numel() for t in outputs) > MOST or torch.Tag.nondeterministic_seeded in func.tags:
            return
        given, named = tree_map_only(Tensor, lambda t: self._of[t], (args, kwargs))
        if "device" in named:
            named = {**named, "device": torch.device("cpu")}
        real = [t for t in tree_leaves(func(*given, **named)) if isinstance(t, Tensor)]
        if [t.shape for t in real] == [t.shape for t in outputs]:
            for tensor, value in zip(outputs, real, strict=True):
                self._of[tensor] = value

    def _forget(self, changed: Tensor) -> None:
        storage = changed.untyped_storage()._cdata
        for tensor in [t for t in self._of if t.untyped_storage()._cdata == storage]:
            del self._of[tensor]
