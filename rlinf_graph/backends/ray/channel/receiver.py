"""A consumer's end of a channel: asks for several items at once while they are read quickly."""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import threading
import time
from collections import deque
from typing import Any, NamedTuple

import ray

from rlinf_graph.backends.ray.channel.arrived import (
    Arrivals,
    Here,
    Source,
    Stretch,
    after_first,
    each,
    single,
    stretches,
)
from rlinf_graph.backends.ray.channel.broker import Notice, Reply
from rlinf_graph.backends.ray.channel.carry import Opened
from rlinf_graph.backends.ray.channel.errors import ChannelError, Gone
from rlinf_graph.backends.ray.channel.lane import Span
from rlinf_graph.backends.ray.channel.shared import Segment, Window
from rlinf_graph.backends.ray.channel.state import Key
from rlinf_graph.backends.ray.channel.steps import Steps
from rlinf_graph.backends.ray.channel.ticker import IDLE_S, LINGER_S, TICKER

QUICK_S = 0.005
"""Seconds between gets up to which a consumer is given items ahead."""

MOST = 2048
"""Items that a consumer is given at once."""


class _Asked(NamedTuple):
    """A question to the broker."""

    ticket: Any
    reference: Any


class Receiver:
    """Gets of one process. Threads may share it."""

    def __init__(self, broker: Any, peer: str, *, prioritised: bool) -> None:
        """Nothing is here. `prioritised` says that items do not come by age."""
        _serve_late()
        self._broker, self._peer = broker, peer
        self._lock = threading.Lock()
        self._lanes: dict[Key, Arrivals] = {}
        self._window = Window()
        self._freed: deque[Segment] = deque()
        self._orphans: list[tuple[Any, Key]] = []
        self._ticking = self._left = False
        self._tickets = itertools.count()
        self._number, self._prioritised = 0, prioritised

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
            asked = item = None
            with self._lock:
                lane = self._lane(key)
                source = lane.here[0].source if lane.here else None
                before = self._before(key, lane)
                if source is not None and source.opened:
                    item = self._pop(key, lane)
                elif source is None and before is None:
                    asked = self._ask_one(key, lane, timeout, own=own)
            if item is not None:
                return (yield from self._read(item))
            if source is not None:
                yield from self._open(source)
            elif asked is None:
                yield from self._await(lane, before)
            elif items := (yield from self._answer(key, asked, None, own=own)):
                return (yield from self._read(single(items)))

    def _ask_one(self, key: Key, lane: Arrivals, timeout: float | None, *, own: bool) -> _Asked:
        now = time.monotonic()
        quick = now - lane.last < QUICK_S and lane.asked
        lane.want = min(8 * lane.want, MOST) if quick else 1
        lane.asked = now
        return self._take(self._notice(key, lane), lane.want, None, timeout, own=own)

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
                before = self._before(key, lane)
                if before is None:
                    notice = self._notice(key, lane, back=True)
                    asked = self._take(notice, 1, weight, timeout, own=own)
                    break
            yield from self._await(lane, before)
        items = yield from self._answer(key, asked, weight, own=own)
        try:
            for item in items:
                yield from self._open(item.source)
        except (GeneratorExit, ChannelError):
            with self._lock:
                self._lane(key).add(items, first=self._prioritised)
                self._watch()
            raise
        with self._lock:
            if not own:
                self._lane(key).taken.extend((item.sequence, item.count) for item in items)
                self._watch()
        batch: list[Any] = []
        for source, index, _sequence in each(items):
            opened = yield from self._open(source)
            batch.append(self._value(source, opened, index))
        return batch

    def _before(self, key: Key, lane: Arrivals) -> Any:
        """An answer that is on its way and has older items than the next one asked for."""
        orphan = next((reference for reference, at in self._orphans if at == key), None)
        return lane.ahead if orphan is None else orphan

    def _await(self, lane: Arrivals, before: Any) -> Steps[None]:
        reply: Reply = yield before
        with self._lock:
            self._adopt()
            self._absorb_ahead(lane, before, reply)

    def leave(self) -> int:
        """Give everything back; the number of the message that says that this end is done."""
        with self._lock:
            self._left = True
            lanes = self._lanes or {None: Arrivals()}
            notices = [self._notice(k, lane, back=True) for k, lane in lanes.items()]
            self._lanes.clear()
            if notices := [n for n in notices if n.taken or n.back or n.freed]:
                self._tell(notices)
            self._number += 1
            return self._number - 1

    def tick(self, now: float) -> bool:
        """Tell what was taken and give back what is not read; whether there is more to come."""
        with self._lock:
            try:
                self._adopt()
                notices = [n for k, lane in self._lanes.items() for n in self._due(k, lane, now)]
                if notices:
                    self._tell(notices)
            except Exception:  # the broker is gone: the next get says so
                self._ticking = False
                return False
            lanes = self._lanes.values()
            self._ticking = bool(self._orphans) or any(
                lane.here or lane.taken or lane.ahead is not None for lane in lanes
            )
            return self._ticking

    def _tell(self, notices: list[Notice]) -> None:
        self._broker.tell.remote(self._peer, notices, self._number)
        self._number += 1

    def _take(
        self, notice: Notice, count: int, target: float | None, timeout: float | None, *, own: bool
    ) -> _Asked:
        """Ask the broker, which hears this end's messages in the order of their numbers."""
        ticket = (self._peer, "get", next(self._tickets))
        asked = (ticket, self._number, notice, count, target, timeout, own)
        reference = self._broker.take.remote(*asked)
        self._number += 1
        return _Asked(ticket, reference)

    def _answer(
        self, key: Key, asked: _Asked, target: float | None, *, own: bool
    ) -> Steps[list[Stretch]]:
        """What the broker answers: items that are the caller's; others go to the lane. Without a
        target the caller's is one; without `own` it is in the lane, too."""
        try:
            runs, _taken = (yield asked.reference).taken()
        except GeneratorExit:
            with self._lock:
                self._broker.withdraw.remote(asked.ticket, "gets", self._number)
                self._number += 1
                self._orphans.append((asked.reference, key))
                self._watch()
            raise
        items = stretches(runs)
        with self._lock:
            lane = self._lane(key)
            if target is None and own:
                lane.add(after_first(items))
            elif target is None:
                lane.add(items)
                items = []
            lane.last = time.monotonic()
            if lane.here or lane.taken:
                self._watch()
        return items

    def _pop(self, key: Key, lane: Arrivals) -> Here:
        """The next item that is here; more are asked for when half are read."""
        item = lane.pop()
        lane.take(item.sequence)
        lane.last = time.monotonic()
        if lane.ahead is None and lane.want > 1 and 2 * lane.left <= lane.want:
            lane.want = min(8 * lane.want, MOST)
            notice = self._notice(key, lane)
            asked = (self._peer, self._number, notice, lane.want)
            lane.ahead = self._broker.ahead.remote(*asked)
            self._number += 1
        if not self._ticking:
            self._watch()
        return item

    def _read(self, item: Here) -> Steps[Any]:
        opened = yield from self._open(item.source)
        return self._value(item.source, opened, item.index)

    def _open(self, source: Source) -> Steps[Opened]:
        """A block; where it is gone, who died with it is the error."""
        try:
            return (yield from source.open(self._window))
        except Gone as error:
            raise ((yield self._broker.cause.remote()) or error) from None

    def _value(self, source: Source, opened: Opened, index: int) -> Any:
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
            self._tell([self._notice(None, Arrivals())])

    def _absorb_ahead(self, lane: Arrivals, ahead: Any, reply: Reply) -> None:
        if lane.ahead is ahead:
            lane.ahead = None
            lane.add(stretches(reply.value[0]))
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
                self._lane(key).add(stretches(reply.value[0]), first=self._prioritised)
        self._orphans = left

    def _due(self, key: Key, lane: Arrivals, now: float) -> list[Notice]:
        if lane.ahead is not None and ray.wait([lane.ahead], timeout=0)[0]:
            self._absorb_ahead(lane, lane.ahead, ray.get(lane.ahead))
        quiet = now - lane.last
        idle = quiet >= IDLE_S and lane.ahead is None
        if (idle and lane.here) or (lane.taken and quiet >= LINGER_S):
            lane.want = 1 if idle else lane.want
            return [self._notice(key, lane, back=idle)]
        return []

    def _notice(self, key: Key, lane: Arrivals, *, back: bool = False) -> Notice:
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

    def _lane(self, key: Key) -> Arrivals:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Arrivals()
        return lane

    def _watch(self) -> None:
        if not self._ticking:
            self._ticking = True
            TICKER.watch(self)


_LATE: queue.SimpleQueue[Receiver] = queue.SimpleQueue()


@functools.cache
def _serve_late() -> None:
    """A thread that tells what the garbage collector must not wait for."""

    def serve() -> None:
        while True:
            _LATE.get().tell_late()

    threading.Thread(target=serve, daemon=True).start()
