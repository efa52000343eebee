"""A producer's end of a channel: fills leases and sends several items in one message."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from rlinf_graph.backends.ray.channel import carry
from rlinf_graph.backends.ray.channel.broker import Group, Notice, Reply
from rlinf_graph.backends.ray.channel.carry import SMALL, Block, Encoded
from rlinf_graph.backends.ray.channel.errors import ChannelError, TimedOut
from rlinf_graph.backends.ray.channel.lane import Row
from rlinf_graph.backends.ray.channel.shared import Pool, Segment
from rlinf_graph.backends.ray.channel.state import Key
from rlinf_graph.backends.ray.channel.steps import Steps
from rlinf_graph.backends.ray.channel.ticker import IDLE_S, LINGER_S, TICKER

INSIDE = 90_000
"""Bytes of items inside a message. Ray copies arguments of more than 100 KB to the object store."""

BLOCK = 1 << 20
"""Bytes of items that go out together, through the object store, when messages are on their way."""

LARGE = 8
"""Items that have blocks of their own, in a message."""

LEAST_S = 1e-3
"""That a put waits which may wait, however late its thread comes to ask."""

LOOK = 256_000
"""Bytes after which a message goes out if none is on its way; `LINGER_S` is as good a reason."""

MOST = 2048
"""Items of a lease, and of a message."""

FIRST = 256
"""Items of a producer's first lease under a key."""

ON_THE_WAY = 4
"""Messages of a producer that are not answered."""


@dataclass
class _Lease:
    """Room at the broker for one key. `ask` grows while it is used quickly."""

    items: int = 0
    nbytes: int = 0
    ask: int = FIRST
    used: float = 0.0


class Sender:
    """Puts of one process. Threads may share it."""

    def __init__(self, broker: Any, peer: str, *, shares: bool) -> None:
        """Nothing is leased. `shares` says that all processes are on one machine."""
        self._broker, self._peer = broker, peer
        self._pool = Pool(peer) if shares else None
        self._lock = threading.Lock()
        self._leases: dict[Key, _Lease] = {}
        self._small = carry.Packer()
        self._rows: dict[Key, list[Row]] = {}
        self._groups: list[Group] = []
        self._sent: deque[Any] = deque()
        self._abandoned: list[tuple[Any, Key]] = []
        self._flushed = self._looked = 0.0
        self._look_at = LOOK
        self._ticking = False
        self._error: ChannelError | None = None
        self._tickets = itertools.count()
        self._asked = self._puts = 0

    def put(
        self, encoded: Encoded, key: Key, weight: float, priority: float, timeout: float | None
    ) -> Steps[None]:
        """Put an item when there is room.

        Raises:
            Closed, TooLarge, Full, TimedOut, PeerFailed: see `Channel.put`.
        """
        began, late = time.monotonic(), False
        while not self.try_put(encoded, key, weight, priority):
            if late:
                told = "what room there was, others of this process have taken"
                raise TimedOut(f"put under key {key!r} waited {timeout:g} s: {told}")
            left = timeout and max(LEAST_S, began + timeout - time.monotonic())
            late = left == LEAST_S
            ticket = (self._peer, "put", next(self._tickets))
            with self._lock:
                ask = self._leases.setdefault(key, _Lease()).ask
                asked = (ticket, self._asked, key, encoded.nbytes, ask, left)
                reference = self._broker.lease.remote(*asked)
                self._asked += 1
            try:
                more = (yield reference).taken()
            except GeneratorExit:
                with self._lock:
                    self._broker.withdraw.remote(ticket, "leases", self._asked)
                    self._asked += 1
                    self._abandoned.append((reference, key))
                    self._watch()
                raise
            self._add(key, more)

    def try_put(self, encoded: Encoded, key: Key, weight: float, priority: float) -> bool:
        """Put an item into a lease; whether there was one that is large enough."""
        with self._lock:
            if self._error is not None:
                raise copy.copy(self._error)
            lease, size = self._leases.get(key), encoded.nbytes
            if lease is None or lease.items < 1 or lease.nbytes < size:
                self._flush()
                self._collect()
                lease = self._leases.get(key)
                if lease is None or lease.items < 1 or lease.nbytes < size:
                    self._watch()  # what is leased and not enough goes back while this one waits
                    return False
            now = time.monotonic()
            block = None
            if size > SMALL:
                self._seal()
                block = self._place_large(encoded)  # may fail: only then is the room taken
            lease.items, lease.nbytes, lease.used = lease.items - 1, lease.nbytes - size, now
            if block is not None:
                rows = [Row(0, weight, size, priority)]
                self._groups.append(Group(key, block, rows, self._more(lease, 1)))
                self._look_at = 0
            else:
                self._append(encoded, key, weight, priority)
            self._flush_when_due(now)
            self._watch()
            return True

    def flush(self) -> Steps[None]:
        """Wait until the broker knows of everything that was put.

        Raises:
            PeerFailed: when the channel has failed.
        """
        with self._lock:
            self._flush()
            sent = self._sent.copy()
        while sent:
            yield sent.popleft()
        with self._lock:
            self._collect()
            if self._error is not None:
                raise copy.copy(self._error)

    def close(self, closer: str) -> Steps[None]:
        """Send everything, give all leases back and tell that a producer is done."""
        yield from self.flush()
        with self._lock:
            notices = self._returned(float("inf"))
            if notices:
                self._broker.tell.remote(self._peer, notices)
            closed = self._broker.close.remote(closer)
        (yield closed).taken()

    def take_back(self, segments: Sequence[Segment]) -> None:
        """Memory that has been read."""
        with self._lock:
            for segment in segments:
                if self._pool:
                    self._pool.give_back(segment)

    def unread(self) -> bool:
        """Whether others may still read memory of this process."""
        with self._lock:
            return self._pool is not None and self._pool.in_use()

    def tick(self, now: float) -> bool:
        """Send what has waited; whether there is more to come."""
        with self._lock:
            try:
                self._collect()
                if self._unsent() and now - self._flushed >= LINGER_S:
                    self._flush()
                if not (self._unsent() or self._sent) and (notices := self._returned(now)):
                    self._broker.tell.remote(self._peer, notices)
            except Exception as error:  # the next put raises it; a thread has nobody to raise it at
                self._error = self._error or ChannelError(f"{type(error).__name__}: {error}")
            left = any(lease.items or lease.nbytes for lease in self._leases.values())
            self._ticking = self._error is None and bool(
                self._unsent() or self._sent or self._abandoned or left
            )
            return self._ticking

    def _unsent(self) -> bool:
        return bool(self._small.items or self._groups)

    def _append(self, encoded: Encoded, key: Key, weight: float, priority: float) -> None:
        """An item for the next block; with the one before it where they are alike."""
        index = self._small.add(encoded)
        row = Row(index, weight, encoded.nbytes, priority)
        rows = self._rows.get(key)
        if rows is None:
            self._rows[key] = [row]
            return
        last = rows[-1]
        if last[1:4] == row[1:4] and last.index + last.count == index:
            rows[-1] = Row(*last[:4], last.count + 1)
        else:
            rows.append(row)

    def _flush_when_due(self, now: float) -> None:
        """A block that is full goes at once; so does the first message after a pause. While a
        message is on its way, the next one grows."""
        small = self._small
        if small.nbytes >= BLOCK or small.items >= MOST or len(self._groups) >= LARGE:
            self._flush()
        elif small.nbytes >= self._look_at or now - self._looked >= LINGER_S:
            self._look_at, self._looked = small.nbytes + LOOK, now
            self._collect(wait=False)
            if not self._sent:
                self._flush()

    def _seal(self) -> None:
        """Small items become a block."""
        if not self._small.items:
            return
        block, all_rows = self._small.block(), self._rows
        self._rows = {}
        if len(block.data) > INSIDE + SMALL // 8:
            try:
                block = self._place_block(block)
            except Exception as error:  # these items were put by others, too: all are told
                self._error = self._error or ChannelError(f"{type(error).__name__}: {error}")
                raise
        for key, rows in all_rows.items():
            lease = self._leases.setdefault(key, _Lease())
            more = self._more(lease, sum(row.count for row in rows))
            self._groups.append(Group(key, block, rows, more))
        self._look_at = LOOK

    def _place_block(self, block: Block) -> Any:
        """The block's data in shared memory or in the object store."""
        found = self._pool.take(len(block.data)) if self._pool else None
        if found is None:
            return ray.put(carry.stored(block))
        segment, memory = found
        memory[: len(block.data)] = np.frombuffer(block.data, np.uint8)
        return block._replace(data=segment)

    def _place_large(self, encoded: Encoded) -> Any:
        found = self._pool.take(carry.room(encoded)) if self._pool else None
        if found is None:
            return ray.put(carry.large(encoded, None))
        segment, memory = found
        return carry.large(encoded, memory)._replace(data=segment)

    @staticmethod
    def _more(lease: _Lease, items: int) -> int:
        """Items to ask for beyond the lease: four times as many as have just been put."""
        lease.ask = min(max(lease.ask, 4 * items), MOST)
        return max(0, lease.ask - lease.items)

    def _flush(self) -> None:
        self._seal()
        if not self._groups:
            return
        while len(self._sent) >= ON_THE_WAY:
            self._take_reply(self._sent.popleft())
        self._sent.append(self._broker.put.remote(self._peer, self._puts, self._groups))
        self._groups, self._puts = [], self._puts + 1  # not before: Ray may refuse
        self._flushed = time.monotonic()

    def _collect(self, *, wait: bool = True) -> None:
        """Take in replies. Those to puts wait for nothing at the broker."""
        self._adopt()
        while self._sent:
            ready = ray.wait([self._sent[0]], timeout=0)[0]
            if not ready and (not wait or self._ticking_thread()):
                return
            self._take_reply(self._sent.popleft())

    def _adopt(self) -> None:
        """Leases that came for callers who were cancelled."""
        left: list[tuple[Any, Key]] = []
        for reference, key in self._abandoned:
            if not ray.wait([reference], timeout=0)[0]:
                left.append((reference, key))
                continue
            reply: Reply = ray.get(reference)
            if reply.error is None:
                self._add_locked(key, reply.value)
        self._abandoned = left

    @staticmethod
    def _ticking_thread() -> bool:
        return threading.current_thread().name == "channels"

    def _take_reply(self, reference: Any) -> None:
        """Of a put."""
        reply: Reply = ray.get(reference)
        if reply.error is not None:
            self._error = self._error or reply.error
        added, freed = reply.value
        for at, lease in added.items():
            self._add_locked(at, lease)
        for segment in freed:
            if self._pool:
                self._pool.give_back(segment)

    def _add(self, key: Key, more: tuple[int, int]) -> None:
        with self._lock:
            self._add_locked(key, more)
            self._watch()

    def _add_locked(self, key: Key, more: tuple[int, int]) -> None:
        lease = self._leases.setdefault(key, _Lease())
        lease.items, lease.nbytes = lease.items + more[0], lease.nbytes + more[1]
        if any(more):
            lease.used = time.monotonic()

    def _returned(self, now: float) -> list[Notice]:
        """Leases that have not been used for a while."""
        notices: list[Notice] = []
        for key, lease in list(self._leases.items()):
            if now - lease.used >= IDLE_S:
                if lease.items or lease.nbytes:
                    notices.append(Notice(key, [], [], (lease.items, lease.nbytes)))
                del self._leases[key]
        return notices

    def _watch(self) -> None:
        if not self._ticking:
            self._ticking = True
            TICKER.watch(self)
