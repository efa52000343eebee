"""Batches and weights as numpy arrays, which Ray's object store shares without copying."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import torch

from rlinf_graph.ir.batch import Batch, Carried

Packed = tuple[str, dict[str, Any]]


def pack(batch: Batch) -> Packed:
    """The batch with arrays for tensors; no copy is made of what lies on the CPU."""
    fields = {
        field.name: to_array(value) if isinstance(value, torch.Tensor) else value
        for field in dataclasses.fields(cast("Any", batch))
        for value in [getattr(batch, field.name)]
    }
    return type(batch).__name__, fields


def unpack(packed: Packed) -> Batch:
    """The batch that `pack` took apart, with tensors of its own."""
    name, fields = packed
    made = {k: to_tensor(v) if isinstance(v, Array) else v for k, v in fields.items()}
    return cast("Batch", Carried.types[name](**made))


@dataclasses.dataclass(frozen=True)
class Array:
    """A tensor's bytes, and its type where numpy has none for it."""

    values: np.ndarray[Any, Any]
    bfloat16: bool = False


def to_array(tensor: torch.Tensor) -> Array:
    """The values of a tensor."""
    host = tensor.detach().cpu().contiguous()
    if host.dtype is torch.bfloat16:
        return Array(host.view(torch.int16).numpy(), bfloat16=True)
    return Array(host.numpy())


def to_tensor(array: Array) -> torch.Tensor:
    """A tensor of its own: what comes out of the object store cannot be written."""
    made = torch.from_numpy(array.values.copy())
    return made.view(torch.bfloat16) if array.bfloat16 else made
