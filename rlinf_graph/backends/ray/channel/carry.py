"""Items as bytes: how they travel. A block holds the data of several small items or of a large one.

Arrays and tensors are described by a form and lie in the block as they are, so that the receiver
reads them without a copy; anything else is pickled, with its arrays and tensors beside the pickle.
"""

from __future__ import annotations

import bisect
import io
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ray import cloudpickle

if TYPE_CHECKING:
    import torch

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


class Layout(NamedTuple):
    """Items of one form that follow one another in a block.

    Attributes:
        form: of each.
        sizes: bytes of each part of each item; a part begins at a multiple of `ALIGNED`.
        first: the number of the first item in its block.
        count: how many.
        offset: bytes before the first.
    """

    form: Form
    sizes: tuple[int, ...]
    first: int
    count: int
    offset: int

    @property
    def stride(self) -> int:
        """Bytes from one item to the next."""
        return sum(size + -size % ALIGNED for size in self.sizes)


class Block(NamedTuple):
    """Items that travel together; their data are bytes, arrays from the object store, or a segment
    of shared memory."""

    layouts: list[Layout]
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


class Packer:
    """Copies small items, as they are now, for a block. `items` and `nbytes` say how many there
    are, and of how many bytes."""

    def __init__(self) -> None:
        """No items yet."""
        self.items = self.nbytes = 0
        self._layouts: list[Layout] = []
        self._form: Form | None = None
        self._sizes: tuple[int, ...] = ()
        self._alike = 0
        self._pieces: list[bytes] = []
        self._length = self._begins = 0

    def add(self, encoded: Encoded) -> int:
        """Take in an item; its number in the block."""
        form, parts, nbytes = encoded
        pieces = self._pieces
        if len(parts) == 1:
            part = parts[0]
            data = part if type(part) is bytes else part.tobytes()
            sizes = (len(data),)
            pieces.append(data)
            if pad := -len(data) % ALIGNED:
                pieces.append(_PADS[pad])
        else:
            sizes = tuple(_append(pieces, part) for part in parts)
        if form != self._form or sizes != self._sizes:
            self._end_layout()
            self._form, self._sizes = form, sizes
        self._alike += 1
        self.items += 1
        self.nbytes += nbytes
        return self.items - 1

    def block(self) -> Block:
        """All items; the packer is empty again."""
        self._end_layout()
        made = Block(self._layouts, b"".join(self._pieces))
        self.__init__()
        return made

    def _end_layout(self) -> None:
        if self._form is not None and self._alike:
            first = self.items - self._alike
            layout = Layout(self._form, self._sizes, first, self._alike, self._begins)
            self._layouts.append(layout)
            self._begins += layout.stride * self._alike
            self._alike = 0


def _append(pieces: list[bytes], part: Any) -> int:
    data = part if type(part) is bytes else part.tobytes()
    pieces.append(data)
    pieces.append(_PADS[-len(data) % ALIGNED])
    return len(data)


def large(encoded: Encoded, memory: Bytes | None) -> Block:
    """A block of one item, written into `memory` if there is any: data are then to be filled in.
    Otherwise one for the object store, which copies it."""
    arrays = [_flat(part) for part in encoded.parts]
    layout = Layout(encoded.form, tuple(map(len, arrays)), 0, 1, 0)
    if memory is None:
        return Block([layout], arrays)
    for (offset, size), array in zip(_places(layout, 0), arrays, strict=True):
        memory[offset : offset + size] = array
    return Block([layout], None)


def _places(layout: Layout, index: int) -> Iterator[tuple[int, int]]:
    """Offset and size of each part of an item, by its number in the block."""
    at = layout.offset + (index - layout.first) * layout.stride
    for size in layout.sizes:
        yield at, size
        at += size + -size % ALIGNED


def room(encoded: Encoded) -> int:
    """Bytes that `large` may write."""
    return encoded.nbytes + ALIGNED * len(encoded.parts)


def stored(block: Block) -> Block:
    """The same block for the object store, which then shares its bytes without a copy."""
    return block._replace(data=np.frombuffer(block.data, np.uint8))


class Opened:
    """A block at its receiver. Each item has one receiver, so that it may be written."""

    def __init__(self, block: Block, memory: Bytes | None) -> None:
        """`memory` is what the block's segment is mapped to, if it lies in one."""
        self._layouts, data = block
        self.alone = self._layouts[-1].first + self._layouts[-1].count == 1
        self._layout, self._view = self._layouts[0], None
        self._end = 0
        if memory is not None:
            self._data: Any = memory
        elif isinstance(data, list):
            self._data = [_writable(part) for part in data]
        else:
            self._data = bytearray(data) if isinstance(data, bytes) else _writable(data)

    def read(self, index: int, *, copied: bool) -> Any:
        """Item number `index` of the block; it shares the block's memory unless it is `copied`."""
        if not self._layout.first <= index < self._end:
            self._turn_to(index)
        layout = self._layout
        if self._view is not None:
            item = self._view[index - layout.first, ...]
            return item.copy() if copied else item
        parts = [self._part(number, at) for number, at in enumerate(_places(layout, index))]
        return _decode(layout.form, [part.copy() for part in parts] if copied else parts)

    def read_whole(self, release: Callable[[], None]) -> Any:
        """The item of a segment that it has for itself; `release` is called when nothing reads
        its memory any more."""
        shared = _Shared(self._data)
        weakref.finalize(shared, release).atexit = False
        data = np.asarray(shared)
        places = _places(self._layouts[0], 0)
        parts = [data[offset : offset + size] for offset, size in places]
        return _decode(self._layouts[0].form, parts)

    def _turn_to(self, index: int) -> None:
        """The layout of an item; arrays are seen as the rows of one."""
        at = bisect.bisect_right(self._layouts, index, key=lambda layout: layout.first) - 1
        self._layout = layout = self._layouts[at]
        self._end = layout.first + layout.count
        self._view = None
        if layout.form[0] == "array" and not isinstance(self._data, list) and layout.sizes[0]:
            dtype, shape = np.dtype(layout.form[1]), layout.form[2]
            inner = np.empty(shape, dtype).strides if len(shape) > 1 else (dtype.itemsize,)
            self._view = np.ndarray(
                (layout.count, *shape),
                dtype,
                self._data,
                layout.offset,
                (layout.stride, *inner[: len(shape)]),
            )

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
    import torch

    kind = getattr(torch, dtype.removeprefix("torch."))
    if not len(data):
        return torch.empty(shape, dtype=kind)
    return torch.from_numpy(data).view(kind).reshape(shape)


def _rebuilt(data: Any, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor inside a pickled item."""
    return _tensor(np.frombuffer(data, np.uint8), dtype, shape)


def _plain(item: Any) -> bool:
    """Whether a tensor is nothing but values on the CPU."""
    torch = sys.modules.get("torch")  # the broker starts much faster without it
    return (
        torch is not None
        and type(item) is torch.Tensor
        and item.device.type == "cpu"
        and item.layout is torch.strided
        and not item.is_quantized
    )


def _bytes_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    import torch

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


def _flat(part: Any) -> np.ndarray[Any, Any]:
    if isinstance(part, np.ndarray):
        return part.reshape(-1).view(np.uint8)
    return np.frombuffer(part, np.uint8)


_PADS = [bytes(size) for size in range(ALIGNED)]
