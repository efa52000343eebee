"""Weights on their way from a trainer to readers: parts by name, in buckets, put together again.

The processes that hold a model put their parts into the object store, as many at a time as fill a
bucket. A reader fetches one bucket of each process at a time and takes a weight when all of it is
there. So no process has more at once than its own part and a bucket of each of the trainer's, or
the largest weight, where that is larger.
"""

from __future__ import annotations

import math
import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import ray
import torch
from torch import Tensor

from rlinf_graph.backends.ray import wire
from rlinf_graph.backends.ray.state import SMALL, Buckets
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.nodes.engine import Shard

BUCKET = 512 * 2**20
"""Bytes, by default."""


@dataclass(frozen=True)
class Transport:
    """How weights travel.

    Attributes:
        bucket: bytes of parts that are put into the object store together.
        checksums: whether readers check that what arrives is what was sent.
    """

    bucket: int = BUCKET
    checksums: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of a weight in the object store.

    Attributes:
        name, shape, offsets: as in `Shard`.
        values: of the part.
        checksum: CRC-32 of its bytes, where it was asked for.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    values: wire.Array
    checksum: int | None


def put_buckets(shards: Iterable[Shard], transport: Transport) -> Buckets:
    """Put a process's parts of a model's weights into the object store, where they are not few."""
    made: Buckets = []
    pieces: list[Piece] = []
    size = 0
    for shard in shards:
        values = wire.to_array(shard.values)
        if pieces and size + values.values.nbytes > transport.bucket:
            made.append(ray.put(pieces))
            pieces, size = [], 0
        checksum = _checksum(values) if transport.checksums else None
        pieces.append(Piece(shard.name, shard.shape, shard.offsets, values, checksum))
        size += values.values.nbytes
    if pieces:
        small = not made and size <= SMALL
        made.append(pickle.dumps(pieces, protocol=5) if small else ray.put(pieces))
    return made


@dataclass(frozen=True)
class Arriving:
    """Whole weights by name, fetched as they are iterated over; again each time.

    Attributes:
        model: for messages.
        members: the buckets of each process that holds a part of the model.
    """

    model: str
    members: Sequence[Buckets]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight when all of it has come.

        Raises:
            CompileError: RG0604, for a weight that is not complete at the end, and for a part whose
                checksum is not that of what was sent.
        """
        begun: dict[str, _Begun] = {}
        for buckets in zip_longest(*self.members):
            for bucket in buckets:
                for piece in _opened(bucket):
                    yield from self._take(piece, begun)
        if begun:
            name, lacking = next(iter(begun.items()))
            message = f"weight `{name}` of `{self.model}` lacks {lacking.left} elements in a sync"
            raise fail("RG0604", message)

    def _take(self, piece: Piece, begun: dict[str, _Begun]) -> Iterator[tuple[str, Tensor]]:
        if piece.checksum is not None and piece.checksum != _checksum(piece.values):
            message = f"weight `{piece.name}` of `{self.model}` was changed on its way in a sync"
            raise fail("RG0604", message)
        part = wire.to_tensor(piece.values)
        if tuple(part.shape) == piece.shape:
            yield piece.name, part
            return
        if piece.name not in begun:
            whole = part.new_empty(piece.shape)
            begun[piece.name] = _Begun(whole, math.prod(piece.shape))
        held = begun[piece.name]
        place = tuple(slice(at, at + n) for at, n in zip(piece.offsets, part.shape, strict=True))
        held.whole[place] = part
        held.left -= part.numel()
        if held.left <= 0:
            yield piece.name, begun.pop(piece.name).whole


def _opened(bucket: bytes | ray.ObjectRef[Any] | None) -> list[Piece]:
    if bucket is None:
        return []
    return pickle.loads(bucket) if isinstance(bucket, bytes) else ray.get(bucket)


@dataclass
class _Begun:
    """A weight of which some parts have come, and how many elements have not."""

    whole: torch.Tensor
    left: int


def _checksum(array: wire.Array) -> int:
    return zlib.crc32(array.values.tobytes())
