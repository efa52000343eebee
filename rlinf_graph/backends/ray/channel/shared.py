"""Memory that the processes of one machine share, and that is gone with the process that made it.

A segment is a file without a name (memfd_create(2)); others open it through the maker's entry in
/proc. Nothing has to be cleaned up after a process that was killed.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from rlinf_graph.backends.ray.channel.errors import PeerFailed

SMALLEST = 1 << 20
"""Bytes of a segment; others are powers of two above."""

SEGMENTS = 256
"""Of a producer: each takes a file descriptor. A consumer keeps as many open."""

MEMORY = 1 << 30
"""Bytes of a producer's segments, and of those that a consumer keeps open; what does not fit goes
to the object store, which can spill."""

Bytes = np.ndarray[Any, Any]


class Segment(NamedTuple):
    """Where to find a segment: a file descriptor of a process. `peer` tells processes apart,
    `number` those that have had the same descriptor one after the other."""

    peer: str
    process: int
    descriptor: int
    nbytes: int
    number: int


def possible() -> bool:
    """Whether this system has files without names."""
    return hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


class Pool:
    """The segments of a producer. One that is given back is the next to be used, being warm. Those
    of a size that is not needed any more make room for others."""

    def __init__(self, peer: str) -> None:
        """No memory yet."""
        self._peer = peer
        self._free: dict[int, list[Segment]] = defaultdict(list)
        self._maps: dict[Segment, Bytes] = {}
        self._nbytes = self._made = 0

    def take(self, nbytes: int) -> tuple[Segment, Bytes] | None:
        """A segment of at least `nbytes` and its memory; None where the pool has no more."""
        size = max(SMALLEST, 1 << (nbytes - 1).bit_length())
        if self._free[size]:
            segment = self._free[size].pop()
            return segment, self._maps[segment]
        while len(self._maps) >= SEGMENTS or self._nbytes + size > MEMORY:
            if not self._drop_one():
                return None
        descriptor = os.memfd_create("channel")
        os.ftruncate(descriptor, size)
        segment = Segment(self._peer, os.getpid(), descriptor, size, self._made)
        self._made += 1
        self._maps[segment] = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
        self._nbytes += size
        return segment, self._maps[segment]

    def _drop_one(self) -> bool:
        """Give a segment up that nobody reads; whether there was one."""
        most = max(self._free.values(), key=len, default=[])
        if not most:
            return False
        segment = most.pop(0)
        del self._maps[segment]
        os.close(segment.descriptor)
        self._nbytes -= segment.nbytes
        return True

    def in_use(self) -> bool:
        """Whether others may read a segment."""
        return sum(map(len, self._free.values())) < len(self._maps)

    def give_back(self, segment: Segment) -> None:
        """Nobody reads a segment any more."""
        self._free[segment.nbytes].append(segment)

    def __del__(self) -> None:
        for segment in self._maps:
            os.close(segment.descriptor)


class Window:
    """The segments that a consumer has opened, the latest. Memory in use outlives it. Threads may
    share it."""

    def __init__(self) -> None:
        """None yet."""
        self._maps: dict[Segment, Bytes] = {}
        self._nbytes = 0
        self._lock = threading.Lock()

    def open(self, segment: Segment) -> Bytes:
        """The memory of a segment.

        Raises:
            PeerFailed: when the process that made it has ended.
        """
        with self._lock:
            return self._open(segment)

    def _open(self, segment: Segment) -> Bytes:
        found = self._maps.pop(segment, None)
        if found is None:
            try:
                path = f"/proc/{segment.process}/fd/{segment.descriptor}"
                descriptor = os.open(path, os.O_RDWR)
            except OSError as error:
                told = f"the memory of process {segment.process} is gone: {error}"
                raise PeerFailed(told) from error
            try:
                mapped = mmap.mmap(descriptor, segment.nbytes)
            finally:
                os.close(descriptor)
            found = np.frombuffer(mapped, np.uint8)
            self._nbytes += segment.nbytes
        self._maps[segment] = found
        while len(self._maps) > SEGMENTS or self._nbytes > max(MEMORY, segment.nbytes):
            oldest = next(iter(self._maps))
            del self._maps[oldest]
            self._nbytes -= oldest.nbytes
        return found
