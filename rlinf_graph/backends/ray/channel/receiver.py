"""A consumer's end of a channel: asks for several items at once while they are read quickly."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray

from rlinf_graph.backends.ray.channel.broker import Notice, Reply, Run
from rlinf_graph.backends.ray.channel.carry import Block, Opened
from rlinf_graph.backends.ray.channel.shared import Segment, Window
from rlinf_graph.backends.ray.channel.state import Key
from rlinf_graph.backends.ray.channel.steps import Steps
from rlinf_graph.backends.ray.channel.ticker import IDLE_S, LINGER_S, TICKER

QUICK_S = 0.005
"""Seconds between gets up to which a consumer is given items ahead."""

MOST = 2048
"""Items that a consumer is given at once."""


class _Source:
    """A block that is opened when its first item is read. `segment` is where it lies, if it is in
    shared memory."""

    def __init__(self, block: Any) -> None:
        """A block, or a reference of one."""
        self.block: Any = block
        self.opened: Opened | None = None
        self.segment: Segment | None = None
        if isinstance(block, Block) and isinstance(block.data, Segment):
            self.segment = block.data

    def open(self, window: Window) -> Steps[Opened]:
        """The block, fetched once."""
        if self.opened is None:
            block = self.block
            if isinstance(block, ray.ObjectRef):
                block = yield block
            self.opened = Opened(block, window.open(self.segment) if self.segment else None)
            self.block = None
        return self.opened


class _Here(NamedTuple):
    """An item at this process."""

    source: _Source
    index: int
    sequence: int


@dataclass
class _Lane:
    """One key. `taken` is what the broker has not been told yet, `ahead` a question to it."""

    here: deque[_Here] = field(default_factory=deque)
    taken: list[int] = field(default_factory=list)
    want: int = 1
    asked: float = 0.0
    last: float = 0.0
    ahead: Any = None


class Receiver:
    """Gets of one process. Threads may share it."""

    def __init__(self, broker: Any, peer: str) -> None:
        """Nothing is here."""
        self._broker, self._peer = broker, peer
        self._lock = threading.Lock()
        self._lanes: dict[Key, _Lane] = {}
        self._window = Window()
        self._freed: deque[Segment] = deque()
        self._orphans: list[tuple[Any, Key]] = []
        self._ticking = False
        self._tickets = itertools.count()

    def try_get(self, key: Key) -> tuple[Any] | None:
        """An item that is here and whose block has been read, in a tuple."""
        with self._lock:
            lane = self._lanes.get(key)
            if lane is None or not lane.here or lane.here[0].source.opened is None:
                return None
            source, index, _sequence = self._pop(key, lane)
        opened = source.opened
        assert opened is not None
        return (self._value(source, opened, index),)

    def get(self, key: Key, timeout: float | None, *, own: bool) -> Steps[Any]:
        """The next item. `own` says that the caller cannot be cancelled while it waits.

        Raises:
            EndOfStream, Empty, TimedOut, PeerFailed: see `Channel.get`.
        """
        while True:
            with self._lock:
                lane = self._lane(key)
                item = self._pop(key, lane) if lane.here else None
                ahead = lane.ahead
            if item is not None:
                return (yield from self._read(item))
            if ahead is None:
                break
            reply: Reply = yield ahead
            with self._lock:
                self._absorb_ahead(lane, ahead, reply)
        with self._lock:
            now = time.monotonic()
            quick = now - lane.last < QUICK_S and lane.asked
            lane.want = min(8 * lane.want, MOST) if quick else 1
            lane.asked = now
            notice = self._notice(key, lane)
            count = lane.want
        items = yield from self._ask(key, notice, count, None, timeout, own=own)
        return (yield from self._read(items[0]))

    def get_batch(
        self, weight: float, key: Key, timeout: float | None, *, own: bool
    ) -> Steps[list[Any]]:
        """Items whose weights come to `weight`.

        Raises:
            EndOfStream, Empty, Stuck, TimedOut, PeerFailed: see `Channel.get_batch`.
        """
        with self._lock:
            lane = self._lane(key)
            ahead = lane.ahead
        if ahead is not None:
            reply: Reply = yield ahead
            with self._lock:
                self._absorb_ahead(lane, ahead, reply)
        with self._lock:
            notice = self._notice(key, lane, back=True)
        items = yield from self._ask(key, notice, 1, weight, timeout, own=own)
        batch: list[Any] = []
        for item in items:
            batch.append((yield from self._read(item)))
        return batch

    def leave(self) -> None:
        """Give everything back."""
        with self._lock:
            notices = [self._notice(k, lane, back=True) for k, lane in self._lanes.items()]
            self._lanes.clear()
            if notices := [n for n in notices if n.taken or n.back]:
                self._broker.tell.remote(self._peer, notices)

    def tick(self, now: float) -> bool:
        """Tell what was taken and give back what is not read; whether there is more to come."""
        with self._lock:
            try:
                self._adopt()
                notices = [n for k, lane in self._lanes.items() for n in self._due(k, lane, now)]
                if notices:
                    self._broker.tell.remote(self._peer, notices)
            except Exception:  # the broker is gone: the next get says so
                self._ticking = False
                return False
            lanes = self._lanes.values()
            self._ticking = bool(self._orphans) or any(
                lane.here or lane.taken or lane.ahead is not None for lane in lanes
            )
            return self._ticking

    def _ask(
        self,
        key: Key,
        notice: Notice,
        count: int,
        target: float | None,
        timeout: float | None,
        *,
        own: bool,
    ) -> Steps[list[_Here]]:
        """What the broker answers: items that are the caller's; others go to the lane."""
        ticket = (self._peer, "get", next(self._tickets))
        reference = self._broker.take.remote(ticket, notice, count, target, timeout, own)
        try:
            reply: Reply = yield reference
        except GeneratorExit:
            self._broker.withdraw.remote(ticket)
            with self._lock:
                self._orphans.append((reference, key))
                self._watch()
            raise
        if reply.error is not None:
            raise reply.error
        runs, _taken = reply.value
        items = _items(runs)
        mine = len(items) if target is not None else 1
        with self._lock:
            lane = self._lane(key)
            lane.here.extend(items[mine:])
            lane.last = time.monotonic()
            if not own:
                lane.taken.extend(item.sequence for item in items[:mine])
            if lane.here or lane.taken:
                self._watch()
        return items[:mine]

    def _pop(self, key: Key, lane: _Lane) -> _Here:
        """The next item that is here; more are asked for when half are read."""
        item = lane.here.popleft()
        lane.taken.append(item.sequence)
        lane.last = time.monotonic()
        if lane.ahead is None and lane.want > 1 and 2 * len(lane.here) <= lane.want:
            lane.want = min(8 * lane.want, MOST)
            notice = self._notice(key, lane)
            lane.ahead = self._broker.ahead.remote(self._peer, notice, lane.want)
        self._watch()
        return item

    def _read(self, item: _Here) -> Steps[Any]:
        opened = yield from item.source.open(self._window)
        return self._value(item.source, opened, item.index)

    def _value(self, source: _Source, opened: Opened, index: int) -> Any:
        """An item, and when its memory is free."""
        segment = source.segment
        if segment is None:
            return opened.read(index, copied=False)
        if opened.alone:
            freed = self._freed
            return opened.read_whole(lambda: freed.append(segment))
        value = opened.read(index, copied=True)
        self._freed.append(segment)
        return value

    def _absorb_ahead(self, lane: _Lane, ahead: Any, reply: Reply) -> None:
        if lane.ahead is ahead:
            lane.ahead = None
            lane.here.extend(_items(reply.value[0]))
            self._watch()

    def _adopt(self) -> None:
        """Items that came for callers who were cancelled."""
        left: list[tuple[Any, Key]] = []
        for reference, key in self._orphans:
            if not ray.wait([reference], timeout=0)[0]:
                left.append((reference, key))
                continue
            reply: Reply = ray.get(reference)
            if reply.error is None:
                self._lane(key).here.extendleft(reversed(_items(reply.value[0])))
        self._orphans = left

    def _due(self, key: Key, lane: _Lane, now: float) -> list[Notice]:
        if lane.ahead is not None and ray.wait([lane.ahead], timeout=0)[0]:
            self._absorb_ahead(lane, lane.ahead, ray.get(lane.ahead))
        quiet = now - lane.last
        idle = quiet >= IDLE_S and lane.ahead is None
        if (idle and lane.here) or (lane.taken and quiet >= LINGER_S):
            lane.want = 1 if idle else lane.want
            return [self._notice(key, lane, back=idle)]
        return []

    def _notice(self, key: Key, lane: _Lane, *, back: bool = False) -> Notice:
        taken, lane.taken = lane.taken, []
        returned: list[int] = []
        if back:
            returned = [item.sequence for item in lane.here]
            lane.here.clear()
        freed: dict[Segment, int] = {}
        while self._freed:
            segment = self._freed.popleft()
            freed[segment] = freed.get(segment, 0) + 1
        return Notice(key, taken, returned, freed=tuple(freed.items()))

    def _lane(self, key: Key) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        return lane

    def _watch(self) -> None:
        if not self._ticking:
            self._ticking = True
            TICKER.watch(self)


def _items(runs: list[Run]) -> list[_Here]:
    found: list[_Here] = []
    for block, indices, sequences in runs:
        source = _Source(block)
        found.extend(_Here(source, i, s) for i, s in zip(indices, sequences, strict=True))
    return found
