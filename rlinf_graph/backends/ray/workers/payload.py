"""Values on their way between processes: arrays beside the pickle, so that they can be shared.

A tensor travels as the array of its values and arrives as a tensor of its own on the CPU, without
gradient. An array arrives as a read-only view of shared memory when it is large. References of
Ray's objects lie beside the pickle: inside it, Ray would keep the objects for ever. Everything else
is pickled as it is, also inside lists, tuples and dictionaries.
"""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import ray
import torch
from ray import cloudpickle

from rlinf_graph.backends.ray.wire import Array, to_array, to_tensor
from rlinf_graph.ir.batch import Carried

INLINE_BYTES = 64 * 1024
"""What is smaller travels inside the message; a reference costs a round trip to its owner."""


@dataclass(frozen=True)
class About:
    """What both ends of a transfer can compare.

    Attributes:
        kind: name of the value's class.
        shape: of a tensor or array; None for anything else.
        dtype: likewise, such as `float32`.
    """

    kind: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        """Such as `Tensor (2, 3) float32`."""
        return self.kind if self.shape is None else f"{self.kind} {self.shape} {self.dtype}"


@dataclass(frozen=True)
class Frozen:
    """A pickled value, and the memory and the references that lie outside of the pickle."""

    pickled: bytes
    buffers: list[np.ndarray[Any, Any]]
    references: list[Any] = field(default_factory=list[Any])

    @property
    def nbytes(self) -> int:
        """Of pickle and memory."""
        return len(self.pickled) + sum(buffer.nbytes for buffer in self.buffers)


@dataclass(frozen=True)
class Envelope:
    """What is sent: the value, when it is small, else a reference in a list of one."""

    about: About
    inline: Frozen | None
    reference: list[Any]

    def open(self) -> Any:
        """The value. Blocks while it is fetched from another machine."""
        frozen = self.inline or cast("Frozen", ray.get(self.reference[0]))
        return thaw(frozen)


@dataclass(frozen=True)
class _Beside:
    """Stands for a reference: its number among them."""

    number: int


@dataclass(frozen=True)
class _Taken:
    """A batch taken apart."""

    kind: type[Carried]
    fields: dict[str, Any]


def describe(value: Any) -> About:
    """What the other end may want to know before it takes the value."""
    if isinstance(value, torch.Tensor):
        return About("Tensor", tuple(value.shape), str(value.dtype).removeprefix("torch."))
    if isinstance(value, np.ndarray):
        return About("ndarray", value.shape, str(value.dtype))
    return About(type(value).__name__)


def seal(value: Any) -> Envelope:
    """Make a value ready to be sent; later changes to it do not reach the other end.

    Raises:
        TypeError, PicklingError: for what cannot be pickled.
    """
    frozen = freeze(value)
    if frozen.nbytes <= INLINE_BYTES:
        return Envelope(describe(value), frozen, [])
    return Envelope(describe(value), None, [ray.put(frozen)])


def freeze(value: Any) -> Frozen:
    """Pickle a value, the memory of arrays and tensors beside it, not copied."""
    buffers: list[pickle.PickleBuffer] = []
    references: list[Any] = []
    dumps: Any = cloudpickle.dumps  # pyright: ignore[reportPrivateImportUsage]  # its documented name
    pickled = dumps(_pack(value, references), protocol=5, buffer_callback=buffers.append)
    return Frozen(pickled, [_memory(buffer) for buffer in buffers], references)


def thaw(frozen: Frozen) -> Any:
    """The value that was frozen."""
    return _unpack(pickle.loads(frozen.pickled, buffers=frozen.buffers), frozen.references)


def _memory(buffer: pickle.PickleBuffer) -> np.ndarray[Any, Any]:
    raw = buffer.raw()
    return np.frombuffer(raw, np.uint8) if raw.nbytes else np.empty(0, np.uint8)


def _pack(value: Any, references: list[Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return to_array(value)
    if isinstance(value, ray.ObjectRef):
        references.append(value)
        return _Beside(len(references) - 1)
    if isinstance(value, Carried) and value.source is None:
        names = [each.name for each in dataclasses.fields(cast("Any", value))]
        packed = {name: _pack(getattr(value, name), references) for name in names}
        return _Taken(type(value), packed)
    return _inside(value, _pack, references)


def _unpack(value: Any, references: list[Any]) -> Any:
    if isinstance(value, Array):
        return to_tensor(value)
    if isinstance(value, _Beside):
        return references[value.number]
    if isinstance(value, _Taken):
        named = value.fields.items()
        return value.kind(**{name: _unpack(inner, references) for name, inner in named})
    return _inside(value, _unpack, references)


def _inside(value: Any, change: Any, references: list[Any]) -> Any:
    """The same in plain containers; subclasses of them are left alone."""
    if type(value) is dict:
        return {key: change(inner, references) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(change(inner, references) for inner in value)
    return value
