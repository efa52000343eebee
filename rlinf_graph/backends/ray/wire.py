"""Batches and weights as numpy arrays, which Ray's object store shares without copying, and small
batches as bytes, which travel with a message."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
from typing import Any, cast

import numpy as np
import torch

from rlinf_graph.ir.batch import Batch, Carried

Packed = tuple[str, dict[str, Any]]

HEAD = 8
"""Bytes before a small batch's pickle that say how long it is."""

ALIGNED = 16
"""Bytes; where the values of a tensor begin."""


def pack(batch: Batch) -> Packed:
    """The batch with arrays for tensors; no copy is made of what lies on the CPU."""
    fields = {
        name: to_array(value) if isinstance(value, torch.Tensor) else value
        for name, value in _values(batch)
    }
    return type(batch).__name__, fields


def unpack(packed: Packed) -> Batch:
    """The batch that `pack` took apart, with tensors of its own."""
    name, fields = packed
    made = {k: to_tensor(v) if isinstance(v, Array) else v for k, v in fields.items()}
    return cast("Batch", Carried.types[name](**made))


def dumps(batch: Batch) -> bytes:
    """The batch as bytes: a pickle, and beside it the values of all tensors one after another."""
    forms, others, values, length = [], {}, [], 0
    for name, value in _values(batch):
        if not isinstance(value, torch.Tensor):
            others[name] = value
            continue
        raw = value.view(torch.int16) if value.dtype is torch.bfloat16 else value
        data = raw.numpy(force=True).tobytes()
        forms.append((name, _named(value.dtype), tuple(value.shape), length))
        values.append(data)
        length += len(data)
        if padding := -length % ALIGNED:
            values.append(bytes(padding))
            length += padding
    head = pickle.dumps((type(batch).__name__, forms, others), protocol=5)
    return b"".join([len(head).to_bytes(HEAD, "little"), head, *values])


def loads(data: bytes) -> Batch:
    """The batch of `dumps`; its tensors lie in a memory of their own, which they share."""
    begin = HEAD + int.from_bytes(data[:HEAD], "little")
    name, forms, fields = pickle.loads(memoryview(data)[HEAD:begin])
    values = bytearray(memoryview(data)[begin:])
    for field, kind, shape, offset in forms:
        dtype, count = getattr(torch, kind), math.prod(shape)
        if count:
            made = torch.frombuffer(values, dtype=dtype, count=count, offset=offset)
            fields[field] = made if len(shape) == 1 else made.reshape(shape)
        else:
            fields[field] = torch.empty(shape, dtype=dtype)
    return cast("Batch", Carried.types[name](**fields))


def _values(batch: Batch) -> list[tuple[str, Any]]:
    return [(name, getattr(batch, name)) for name in _fields(type(batch))]


@functools.cache
def _named(kind: torch.dtype) -> str:
    """As `torch` has it."""
    return str(kind).removeprefix("torch.")


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cast("Any", kind)))


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
