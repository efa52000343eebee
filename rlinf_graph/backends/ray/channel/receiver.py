"""A consumer's end of a channel: asks for several items at once while they are read quickly."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray

from rlinf_graph.backends.ray.channel.broker import Notice, Reply, Run
from rlinf_graph.backends.ray.channel.carry import Block, Opened
from rlinf_graph.backends.ray.channel.lane import Span
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
        block = self.block
        if self.opened is None:
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
class _Stretch:
    """Items in a row at this process, of which the first are read."""

    source: _Source
    index: int
    sequence: int
    count: int


@dataclass
class _Lane:
    """One key. `left` items are here; `taken` is what the broker has not been told yet, `ahead` a
    question to it."""

    here: deque[_Stretch] = field(default_factory=deque)
    left: int = 0
    taken: list[Span] = field(default_factory=list)
    want: int = 1
    asked: float = 0.0
    last: float = 0.0
    ahead: Any = None

    def pop(self) -> _Here:
        """The next item."""
        stretch = self.here[0]
        item = _Here(stretch.source, stretch.index, stretch.sequence)
        self.left -= 1
        if stretch.count == 1:
            self.here.popleft()
        else:
            stretch.index += 1
            stretch.sequence += 1
            stretch.count -= 1
        return item

    def add(self, stretches: Sequence[_Stretch], *, first: bool = False) -> None:
        """Items have come; before those that are here, where they are the `first`."""
        if first:
            self.here.extendleft(reversed(stretches))
        else:
            self.here.extend(stretches)
        self.left += sum(stretch.count for stretch in stretches)

    def take(self, sequence: int) -> None:
        """An item is read, which the broker will be told."""
        if self.taken:
            first, count = self.taken[-1]
            if first + count == sequence:
                self.taken[-1] = first, count + 1
                return
        self.taken.append((sequence, 1))


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
        self._ticking = self._left = False
        self._tickets = itertools.count()

    def try_get(self, key: Key) -> tuple[Any] | None:
        """An item that is here and whose block has been read, in a tuple."""
        with self._lock:
            lane = self._lanes.get(key)
            if lane is None or not lane.here or (opened := lane.here[0].source.opened) is None:
                return None
            source, index, _sequence = self._pop(key, lane)
        return (self._value(source, opened, index),)

    def get(self, key: Key, timeout: float | None, *, own: bool) -> Steps[Any]:
        """The next item. `own` says that the caller cannot be cancelled while it waits.

        Raises:
            EndOfStream, Empty, TimedOut, PeerFailed: see `Channel.get`.
        """
        while True:
            with self._lock:
                lane = self._lane(key)
                source = lane.here[0].source if lane.here else None
                item = self._pop(key, lane) if source and source.opened else None
                ahead = lane.ahead
                orphan = self._orphan(key)
            if item is not None:
                return (yield from self._read(item))
            if source is not None:
                yield from source.open(self._window)
            elif orphan is not None:
                yield orphan
                with self._lock:
                    self._adopt()
            elif ahead is not None:
                reply: Reply = yield ahead
                with self._lock:
                    self._absorb_ahead(lane, ahead, reply)
            else:
                items = yield from self._ask_one(key, lane, timeout, own=own)
                if items:
                    return (yield from self._read(_single(items)))

    def _ask_one(
        self, key: Key, lane: _Lane, timeout: float | None, *, own: bool
    ) -> Steps[list[_Stretch]]:
        """An item of the caller's own; without `own` none, but it is here."""
        with self._lock:
            now = time.monotonic()
            quick = now - lane.last < QUICK_S and lane.asked
            lane.want = min(8 * lane.want, MOST) if quick else 1
            lane.asked = now
            notice = self._notice(key, lane)
            count = lane.want
        return (yield from self._ask(key, notice, count, None, timeout, own=own))

    def get_batch(
        self, weight: float, key: Key, timeout: float | None, *, own: bool
    ) -> Steps[list[Any]]:
        """Items whose weights come to `weight`.

        Raises:
            EndOfStream, Empty, Stuck, TimedOut, PeerFailed: see `Channel.get_batch`.
        """
        while True:
            with self._lock:
                lane = self._lane(key)
                ahead, orphan = lane.ahead, self._orphan(key)
            if orphan is not None:
                yield orphan
                with self._lock:
                    self._adopt()
            elif ahead is not None:
                reply: Reply = yield ahead
                with self._lock:
                    self._absorb_ahead(lane, ahead, reply)
            else:
                break
        with self._lock:
            notice = self._notice(key, lane, back=True)
        items = yield from self._ask(key, notice, 1, weight, timeout, own=own)
        try:
            for item in items:
                yield from item.source.open(self._window)
        except GeneratorExit:
            with self._lock:
                self._lane(key).add(items, first=True)
                self._watch()
            raise
        with self._lock:
            if not own:
                self._lane(key).taken.extend((item.sequence, item.count) for item in items)
                self._watch()
        batch: list[Any] = []
        for source, index, _sequence in _each(items):
            opened = yield from source.open(self._window)
            batch.append(self._value(source, opened, index))
        return batch

    def _orphan(self, key: Key) -> Any:
        return next((reference for reference, at in self._orphans if at == key), None)

    def leave(self) -> None:
        """Give everything back."""
        with self._lock:
            self._left = True
            lanes = self._lanes or {None: _Lane()}
            notices = [self._notice(k, lane, back=True) for k, lane in lanes.items()]
            self._lanes.clear()
            if notices := [n for n in notices if n.taken or n.back or n.freed]:
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
    ) -> Steps[list[_Stretch]]:
        """What the broker answers: items that are the caller's; others go to the lane. Without a
        target the caller's is one."""
        ticket = (self._peer, "get", next(self._tickets))
        reference = self._broker.take.remote(ticket, notice, count, target, timeout, own)
        try:
            runs, _taken = (yield reference).taken()
        except GeneratorExit:
            self._broker.withdraw.remote(ticket)
            with self._lock:
                self._orphans.append((reference, key))
                self._watch()
            raise
        items = _stretches(runs)
        with self._lock:
            lane = self._lane(key)
            if target is None and own:
                lane.add(_after_first(items))
            elif target is None:
                lane.add(items)
                items = []
            lane.last = time.monotonic()
            if lane.here or lane.taken:
                self._watch()
        return items

    def _pop(self, key: Key, lane: _Lane) -> _Here:
        """The next item that is here; more are asked for when half are read."""
        item = lane.pop()
        lane.take(item.sequence)
        lane.last = time.monotonic()
        if lane.ahead is None and lane.want > 1 and 2 * lane.left <= lane.want:
            lane.want = min(8 * lane.want, MOST)
            notice = self._notice(key, lane)
            lane.ahead = self._broker.ahead.remote(self._peer, notice, lane.want)
        if not self._ticking:
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
            return opened.read_whole(lambda: self._release(segment))
        value = opened.read(index, copied=True)
        self._freed.append(segment)
        return value

    def _release(self, segment: Segment) -> None:
        """Called by the garbage collector, wherever the process is."""
        self._freed.append(segment)
        if self._left:
            _LATE.put(self)

    def tell_late(self) -> None:
        """Memory was released after this end has left."""
        with self._lock, contextlib.suppress(Exception):
            notice = self._notice(None, _Lane())
            self._broker.tell.remote(self._peer, [notice])

    def _absorb_ahead(self, lane: _Lane, ahead: Any, reply: Reply) -> None:
        if lane.ahead is ahead:
            lane.ahead = None
            lane.add(_stretches(reply.value[0]))
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
                self._lane(key).add(_stretches(reply.value[0]), first=True)
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
        returned: list[Span] = []
        if back:
            returned = [(stretch.sequence, stretch.count) for stretch in lane.here]
            lane.here.clear()
            lane.left = 0
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


_LATE: queue.SimpleQueue[Receiver] = queue.SimpleQueue()


def _serve_late() -> None:
    while True:
        _LATE.get().tell_late()


threading.Thread(target=_serve_late, daemon=True).start()


def _stretches(runs: Sequence[Run]) -> list[_Stretch]:
    """Items as the broker gives them; those of a block share its source."""
    found: list[_Stretch] = []
    last: Any = None
    for block, index, sequence, count in runs:
        source = found[-1].source if found and block is last else _Source(block)
        last = block
        found.append(_Stretch(source, index, sequence, count))
    return found


def _after_first(items: list[_Stretch]) -> list[_Stretch]:
    """All but the first item, which alone is left in `items`."""
    first, *others = items
    if first.count > 1:
        after = _Stretch(first.source, first.index + 1, first.sequence + 1, first.count - 1)
        others.insert(0, after)
        first.count = 1
    items[1:] = []
    return others


def _single(items: list[_Stretch]) -> _Here:
    (first,) = items
    return _Here(first.source, first.index, first.sequence)


def _each(items: list[_Stretch]) -> Iterator[_Here]:
    for item in items:
        for number in range(item.count):
            yield _Here(item.source, item.index + number, item.sequence + number)
