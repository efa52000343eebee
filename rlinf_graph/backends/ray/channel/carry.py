"""Items as bytes: how they travel. A block holds the data of several small items or of a large one.

Arrays and tensors are described by a form and lie in the block as they are, so that the receiver
reads them without a copy; anything else is pickled, with its arrays and tensors beside the pickle.
"""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ray import cloudpickle

SMALL = 65_536
"""Bytes of an item that shares a block with others."""

ALIGNED = 64
"""Bytes; where data begin in a block."""

Bytes = np.ndarray[Any, Any]

Form = tuple[Any, ...]
"""What the bytes of an item are: `("array", dtype, shape)`, `("tensor", dtype, shape)`,
`("bytes",)` or `("pickle",)`, whose parts are the pickle and its buffers."""


class Encoded(NamedTuple):
    """An item whose data have not been copied yet."""

    form: Form
    parts: list[Any]
    nbytes: int


class Block(NamedTuple):
    """Items that travel together. `places[i]` has offset and size of each part of item i in the
    data: bytes, an array from the object store, or a segment of shared memory."""

    forms: list[Form]
    places: list[tuple[tuple[int, int], ...]]
    data: Any


def encode(item: Any) -> Encoded:
    """The form of an item and views of its data.

    Raises:
        TypeError, pickle.PicklingError: where it cannot be pickled.
    """
    kind = type(item)
    if kind is np.ndarray and item.dtype.isbuiltin == 1 and item.dtype.kind in "biufc":
        flat = item if item.flags.c_contiguous else np.ascontiguousarray(item)
        return Encoded(("array", item.dtype.str, item.shape), [flat], flat.nbytes)
    if kind is bytes:
        return Encoded(("bytes",), [item], len(item))
    if _plain(item):
        data = _bytes_of(item)
        return Encoded(("tensor", str(item.dtype), tuple(item.shape)), [data], data.nbytes)
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(item)
    parts = [head.getbuffer(), *(buffer.raw() for buffer in buffers)]
    return Encoded(("pickle",), parts, sum(part.nbytes for part in parts))


def pack(items: Sequence[Encoded]) -> Block:
    """Copy small items into one block."""
    pieces: list[Any] = []
    places: list[tuple[tuple[int, int], ...]] = []
    at = 0
    for _form, parts, _nbytes in items:
        spots: list[tuple[int, int]] = []
        for part in parts:
            size = len(part)
            spots.append((at, size))
            pad = -size % ALIGNED
            pieces.append(part)
            if pad:
                pieces.append(_PADS[pad])
            at += size + pad
        places.append(tuple(spots))
    return Block([item.form for item in items], places, b"".join(pieces))


def large(encoded: Encoded, memory: Bytes | None) -> Block:
    """A block of one item, written into `memory` if there is any: data are then to be filled in.
    Otherwise one for the object store, which copies it."""
    arrays = [_flat(part) for part in encoded.parts]
    if memory is None:
        return Block([encoded.form], [tuple((0, len(array)) for array in arrays)], arrays)
    places: list[tuple[int, int]] = []
    at = 0
    for array in arrays:
        memory[at : at + len(array)] = array
        places.append((at, len(array)))
        at += len(array) + -len(array) % ALIGNED
    return Block([encoded.form], [tuple(places)], None)


def room(encoded: Encoded) -> int:
    """Bytes that `large` may write."""
    return encoded.nbytes + ALIGNED * len(encoded.parts)


def snapshot(encoded: Encoded) -> Encoded:
    """The item as it is now: parts that do not change with the sender's arrays."""
    form, parts, nbytes = encoded
    return Encoded(form, [part if type(part) is bytes else _copy(part) for part in parts], nbytes)


def stored(block: Block) -> Block:
    """The same block for the object store, which then shares its bytes without a copy."""
    return block._replace(data=np.frombuffer(block.data, np.uint8))


class Opened:
    """A block at its receiver. Each item has one receiver, so that it may be written."""

    def __init__(self, block: Block, memory: Bytes | None) -> None:
        """`memory` is what the block's segment is mapped to, if it lies in one."""
        self._forms, self._places, data = block
        self.alone = len(self._forms) == 1
        if memory is not None:
            self._data: Any = memory
        elif isinstance(data, list):
            self._data = [_writable(part) for part in data]
        else:
            self._data = bytearray(data) if isinstance(data, bytes) else _writable(data)

    def read(self, index: int, *, copied: bool) -> Any:
        """Item number `index` of the block; it shares the block's memory unless it is `copied`."""
        form, places = self._forms[index], self._places[index]
        if copied and form[0] == "array":
            (offset, size) = places[0]
            dtype = np.dtype(form[1])
            data: Any = self._data
            flat = np.frombuffer(data, dtype, size // dtype.itemsize, offset)
            return flat.reshape(form[2]).copy()
        parts = [self._part(number, place) for number, place in enumerate(places)]
        return _decode(form, [part.copy() for part in parts] if copied else parts)

    def read_whole(self, release: Callable[[], None]) -> Any:
        """The item of a segment that it has for itself; `release` is called when nothing reads
        its memory any more."""
        shared = _Shared(self._data)
        weakref.finalize(shared, release).atexit = False
        data = np.asarray(shared)
        parts = [data[offset : offset + size] for offset, size in self._places[0]]
        return _decode(self._forms[0], parts)

    def _part(self, number: int, place: tuple[int, int]) -> Bytes:
        if isinstance(self._data, list):
            return self._data[number]
        data: Any = self._data
        return np.frombuffer(data, np.uint8, place[1], place[0])


def _decode(form: Form, parts: list[Any]) -> Any:
    match form:
        case ("array", dtype, shape):
            return parts[0].view(dtype).reshape(shape)
        case ("tensor", dtype, shape):
            return _tensor(parts[0], dtype, shape)
        case ("bytes",):
            return parts[0].tobytes()
        case _:
            return pickle.loads(parts[0], buffers=parts[1:])


def _tensor(data: Any, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    kind = getattr(torch, dtype.removeprefix("torch."))
    if not len(data):
        return torch.empty(shape, dtype=kind)
    return torch.from_numpy(data).view(kind).reshape(shape)


def _rebuilt(data: Any, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor inside a pickled item."""
    return _tensor(np.frombuffer(data, np.uint8), dtype, shape)


def _plain(item: Any) -> bool:
    """Whether a tensor is nothing but values on the CPU."""
    return (
        type(item) is torch.Tensor
        and item.device.type == "cpu"
        and item.layout is torch.strided
        and not item.is_quantized
    )


def _bytes_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    values = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return values.reshape(-1).view(torch.uint8).numpy()


class _Pickler(cloudpickle.Pickler):
    """Tensors as arrays, beside the pickle."""

    def reducer_override(self, obj: Any) -> Any:
        """Plain tensors; everything else as cloudpickle has it."""
        if _plain(obj):
            data: Any = _bytes_of(obj)
            return _rebuilt, (pickle.PickleBuffer(data), str(obj.dtype), tuple(obj.shape))
        return super().reducer_override(obj)


class _Shared:
    """The memory of an array that Ray marks as read-only; keeps the array alive."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        address = array.__array_interface__
        self.__array_interface__ = address | {"data": (address["data"][0], False)}


def _writable(data: Any) -> np.ndarray[Any, Any]:
    array = np.frombuffer(data, np.uint8)
    return array if array.flags.writeable or not array.size else np.asarray(_Shared(array))


def _copy(part: Any) -> bytes:
    return part.tobytes()


def _flat(part: Any) -> np.ndarray[Any, Any]:
    if isinstance(part, np.ndarray):
        return part.reshape(-1).view(np.uint8)
    return np.frombuffer(part, np.uint8)


_PADS = [bytes(size) for size in range(ALIGNED)]
