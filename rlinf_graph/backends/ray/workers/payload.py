"""Values on their way between processes: arrays beside the pickle, so that they can be shared.

A tensor travels as the array of its values and arrives as a tensor of its own on the CPU, without
gradient. An array arrives as a read-only view of shared memory when it is large. Everything else
is pickled as it is, also inside lists, tuples and dictionaries.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray
import torch
from ray import cloudpickle
from ray.actor import ActorHandle

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
    """A pickled value, the memory that lies outside of the pickle, and the references to objects
    and actors, which Ray only counts where it finds them itself."""

    pickled: bytes
    buffers: list[np.ndarray[Any, Any]]
    references: list[Any]

    @property
    def nbytes(self) -> int:
        """Of both."""
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
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=5, buffer_callback=buffers.append)
    pickler.dump(_pack(value))
    memory = [_memory(buffer) for buffer in buffers]
    return Frozen(file.getvalue(), memory, pickler.references)


def thaw(frozen: Frozen) -> Any:
    """The value that was frozen."""
    token = _REFERENCES.set(frozen.references)
    try:
        return _unpack(pickle.loads(frozen.pickled, buffers=frozen.buffers))
    finally:
        _REFERENCES.reset(token)


_REFERENCES: ContextVar[list[Any]] = ContextVar("references")


def _reference(number: int) -> Any:
    return _REFERENCES.get()[number]


class _Pickler(cloudpickle.Pickler):
    """References beside the pickle."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.references: list[Any] = []

    def reducer_override(self, obj: Any) -> Any:
        """References by their number; everything else as cloudpickle has it."""
        if isinstance(obj, ray.ObjectRef | ActorHandle):
            self.references.append(obj)
            return _reference, (len(self.references) - 1,)
        return super().reducer_override(obj)


def _memory(buffer: pickle.PickleBuffer) -> np.ndarray[Any, Any]:
    raw = buffer.raw()
    return np.frombuffer(raw, np.uint8) if raw.nbytes else np.empty(0, np.uint8)


def _pack(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return to_array(value)
    if isinstance(value, Carried) and value.source is None:
        names = [field.name for field in dataclasses.fields(cast("Any", value))]
        return _Taken(type(value), {name: _pack(getattr(value, name)) for name in names})
    return _inside(value, _pack)


def _unpack(value: Any) -> Any:
    if isinstance(value, Array):
        return to_tensor(value)
    if isinstance(value, _Taken):
        return value.kind(**{name: _unpack(inner) for name, inner in value.fields.items()})
    return _inside(value, _unpack)


def _inside(value: Any, change: Any) -> Any:
    """The same in plain containers; subclasses of them are left alone."""
    if type(value) is dict:
        return {key: change(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(change(inner) for inner in value)
    return value
