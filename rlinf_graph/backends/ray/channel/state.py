"""The state of a channel: who may put, who gets what. No processes, no clock.

A *lease* is room that a producer may fill without asking again; what a consumer has been given
ahead of its gets is *held* for it. Both count as used until they are used up or given back, so that
the capacity holds for all producers together, with everything that is on its way.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rlinf_graph.backends.ray.channel.errors import (
    ChannelError,
    Closed,
    Empty,
    EndOfStream,
    Full,
    PeerFailed,
    Stuck,
    TooLarge,
)
from rlinf_graph.backends.ray.channel.lane import (
    Given,
    Item,
    Lane,
    Limits,
    Room,
    Row,
    Span,
    Want,
)
from rlinf_graph.backends.ray.channel.reading import Reading

Key = Any
"""What items are put under; any hashable value."""

AHEAD = 64 << 20
"""Bytes that a consumer is given ahead of its gets."""

LEASE = 256 << 20
"""Bytes of a producer's lease when they are free."""


class Exchange:
    """All keys of a channel. What was asked for is answered through `resolve(ticket, answer)`;
    an answer is a value or an exception."""

    def __init__(self, limits: Limits, resolve: Callable[[Any, Any], None]) -> None:
        """An open channel with nothing in it."""
        self.limits, self._resolve = limits, resolve
        self.lanes: dict[Key, Lane] = defaultdict(Lane)
        self.producers: set[str] = set()
        self.closers: set[str] = set()
        self.failure: PeerFailed | None = None
        self.reading = Reading()
        self._sequence = 0

    @property
    def closed(self) -> bool:
        """Whether nothing can be put any more."""
        return len(self.closers) >= self.limits.producers

    def lease(
        self, ticket: Any, peer: str, key: Key, nbytes: int, ask: int, *, wait: bool = True
    ) -> None:
        """Ask for room for an item of `nbytes`, and for up to `ask` items if nobody else waits.

        Answers with the numbers of items and bytes; or `Closed`, `TooLarge`, `Full`.
        """
        self.producers.add(peer)
        if error := self.failure or self._put_error(nbytes):
            self._resolve(ticket, error)
            return
        lane = self.lanes[key]
        room = Room(ticket, peer, nbytes, ask)
        if not wait and (lane.rooms or not self._fits(lane, nbytes)):
            self._resolve(ticket, Full(f"key {key!r} is full: {self.describe(key)}"))
            return
        lane.rooms.append(room)
        self._settle(lane)

    def put(
        self, peer: str, key: Key, block: Any, rows: Sequence[Row], ask: int
    ) -> tuple[int, int]:
        """Take in leased items; the lease that is added for up to `ask` more.

        Raises:
            ChannelError: where the lease does not cover the items.
            PeerFailed: when the channel has failed.
        """
        if self.failure:
            raise self.failure
        lane, items = self.lanes[key], sum(row.count for row in rows)
        size = sum(row.nbytes * row.count for row in rows)
        leased = lane.leases.get(peer, (0, 0))
        if leased[0] < items or leased[1] < size:
            raise ChannelError(f"{items} items of {size} bytes with a lease of {leased}")
        self._set_lease(lane, peer, leased[0] - items, leased[1] - size)
        prioritised = self.limits.prioritised
        for index, weight, nbytes, priority, count in rows:
            order = -priority if prioritised else 0.0
            lane.push(Item(order, self._sequence, weight, nbytes, block, index, count))
            self._sequence += count
        self.reading.came(block, items)
        lane.came += items
        lane.most = max(lane.most, lane.queued)
        added = self._extra(lane, peer, ask) if not self._put_error(0) else (0, 0)
        self._grant(lane, peer, *added)
        self._settle(lane)
        return added

    def give_back(self, peer: str, key: Key, items: int, nbytes: int) -> None:
        """A producer does not need so much of its lease."""
        lane = self.lanes[key]
        leased = lane.leases.get(peer, (0, 0))
        items, nbytes = min(items, leased[0]), min(nbytes, leased[1])
        self._set_lease(lane, peer, leased[0] - items, leased[1] - nbytes)
        lane.items -= items
        lane.nbytes -= nbytes
        self._settle(lane)

    def take(
        self,
        ticket: Any,
        peer: str,
        key: Key,
        count: int = 1,
        target: float | None = None,
        *,
        wait: bool = True,
        own: bool = True,
    ) -> None:
        """Ask for an item (up to `count`, of which the first is taken and the others are held), or
        for the shortest run of items whose weights come to `target`. Without `own`, all of them
        are held until the consumer confirms them.

        Answers with `Given`; or `EndOfStream`, `Stuck`, `Empty`.
        """
        if self.failure:
            self._resolve(ticket, self.failure)
            return
        self.lanes[key].consumers.add(peer)
        lane, want = self.lanes[key], Want(ticket, peer, count, target, own)
        lane.wants.append(want)
        self._settle(lane)
        if not wait and want in lane.wants:
            lane.wants.remove(want)
            self._resolve(ticket, Empty(f"nothing to get: {self.describe(key)}"))

    def ahead(self, peer: str, key: Key, count: int) -> list[Item]:
        """Up to `count` items to hold for a consumer; none where somebody waits for them."""
        lane = self.lanes[key]
        alone = not self.limits.ordered or self._alone(lane, peer)
        if self.failure or lane.wants or not lane.queue or self.limits.prioritised or not alone:
            return []
        return self._hand_out(lane, peer, count, 0)

    def confirm(self, peer: str, key: Key, spans: Iterable[Span]) -> None:
        """A consumer has taken items that were held for it."""
        lane = self.lanes[key]
        self._take(lane, peer, list(lane.let_go(peer, spans)))
        self._settle(lane)

    def put_back(self, peer: str, key: Key, spans: Iterable[Span]) -> None:
        """A consumer does not take items that were held for it: they go where they came from."""
        lane = self.lanes[key]
        for item in lane.let_go(peer, spans):
            lane.push(item)
        self._settle(lane)

    def close(self, closer: str) -> None:
        """A producer puts nothing more; the last one ends the stream."""
        self.closers.add(closer)
        for lane in list(self.lanes.values()):
            while lane.rooms and (error := self._put_error(0)):
                self._resolve(lane.rooms.popleft().ticket, error)
            self._settle(lane)

    def fail(self, error: PeerFailed) -> None:
        """End the channel for everybody; the first cause is kept, what is inside is dropped."""
        self.failure = self.failure or error
        for lane in self.lanes.values():
            for waiter in [*lane.rooms, *lane.wants]:
                self._resolve(waiter.ticket, self.failure)
        self.lanes.clear()

    def leave(self, peer: str) -> None:
        """A process is done: its leases and what is held for it are there for the others."""
        for key, lane in list(self.lanes.items()):
            lane.rooms = deque(room for room in lane.rooms if room.peer != peer)
            lane.wants = deque(want for want in lane.wants if want.peer != peer)
            self.give_back(peer, key, *lane.leases.get(peer, (0, 0)))
            self.put_back(peer, key, [(i.sequence, i.count) for i in lane.held[peer].values()])
            del lane.held[peer]
            lane.consumers.discard(peer)
        self.producers.discard(peer)

    def withdraw(self, ticket: Any) -> bool:
        """Forget who waits under a ticket; whether there was one."""
        for lane in self.lanes.values():
            for waiters in (lane.rooms, lane.wants):
                for waiter in waiters:
                    if waiter.ticket == ticket:
                        waiters.remove(waiter)  # pyright: ignore[reportArgumentType] its own member
                        self._settle(lane)
                        return True
        return False

    def describe(self, key: Key) -> str:
        """What a key holds and who waits for it, in one line."""
        lane = self.lanes[key]
        leased = sum(items for items, _nbytes in lane.leases.values())
        held = sum(item.count for items in lane.held.values() for item in items.values())
        capacity = f"{self.limits.items:g} items and {self.limits.nbytes:g} bytes"
        return (
            f"{lane.queued} queued (weight {lane.weight:g}), {leased} leased, {held} held, "
            f"{lane.nbytes} bytes in use, capacity {capacity}; {len(lane.rooms)} wait to put, "
            f"{len(lane.wants)} wait to get"
        )

    def _put_error(self, nbytes: int) -> ChannelError | None:
        if self.closed:
            return Closed("put into a channel that is closed")
        if nbytes > self.limits.nbytes:
            size = f"{nbytes} bytes; the channel may hold {self.limits.nbytes:g}"
            return TooLarge(f"an item has {size}")
        return None

    def _fits(self, lane: Lane, nbytes: int) -> bool:
        room = self.limits
        return lane.items < room.items and lane.nbytes + nbytes <= room.nbytes

    def _extra(self, lane: Lane, peer: str, ask: int) -> tuple[int, int]:
        """What may be leased ahead of need: at most this producer's part of half of the room."""
        if lane.rooms or ask <= 0:
            return 0, 0
        shares = 2 * max(1, len(self.producers))
        items = min(ask, (self.limits.items - lane.items) // shares)
        held = lane.leases.get(peer, (0, 0))[1]
        nbytes = min(LEASE - held, (self.limits.nbytes - lane.nbytes) // shares)
        return (int(items), int(nbytes)) if items > 0 and nbytes > 0 else (0, 0)

    def _grant(self, lane: Lane, peer: str, items: int, nbytes: int) -> None:
        leased = lane.leases.get(peer, (0, 0))
        self._set_lease(lane, peer, leased[0] + items, leased[1] + nbytes)
        lane.items += items
        lane.nbytes += nbytes

    @staticmethod
    def _set_lease(lane: Lane, peer: str, items: int, nbytes: int) -> None:
        if items or nbytes:
            lane.leases[peer] = items, nbytes
        else:
            lane.leases.pop(peer, None)

    def _hand_out(self, lane: Lane, peer: str, count: int, taken: int) -> list[Item]:
        """A fair part of the queue, at least one item; the first `taken`, 0 or 1, are the
        consumer's own."""
        others = max(len(lane.wants), len(lane.consumers), 1)
        left = max(1, min(count, lane.queued // others)) - 1
        given, size = [lane.pop()], 0
        if taken:
            self._take(lane, peer, given)
        while left and lane.queue:
            head = lane.queue[0]
            most = min(left, (AHEAD - size) // head.nbytes if head.nbytes else left)
            if most < 1:
                break
            item = lane.pop(most)
            given.append(item)
            left -= item.count
            size += item.nbytes * item.count
        lane.hold(peer, given[taken:])
        return given

    def _take(self, lane: Lane, peer: str, items: list[Item]) -> None:
        lane.free(items)
        self.reading.took(peer, items)

    def _settle(self, lane: Lane) -> None:
        """Answer all who can be answered, in the order in which they came."""
        while True:
            if lane.rooms and self._fits(lane, lane.rooms[0].nbytes):
                room = lane.rooms.popleft()
                self._grant(lane, room.peer, 1, room.nbytes)
                items, nbytes = self._extra(lane, room.peer, room.ask - 1)
                self._grant(lane, room.peer, items, nbytes)
                self._resolve(room.ticket, (items + 1, nbytes + room.nbytes))
            elif lane.wants and (answer := self._answer(lane, lane.wants[0])) is not None:
                self._resolve(lane.wants.popleft().ticket, answer)
            else:
                return

    def _answer(self, lane: Lane, want: Want) -> Given | ChannelError | None:
        if self.closed and not lane.queue and not lane.pending():
            return EndOfStream("the channel is closed and empty")
        alone = self._alone(lane, want.peer)
        if self.limits.ordered and any(lane.held.values()):
            return None  # also for threads of one process, and for a get after a cancelled one
        if want.target is None:
            if not lane.queue:
                return None
            single = self.limits.prioritised or (self.limits.ordered and not alone)
            count = 1 if single else want.count
            own = int(want.own)
            return Given(self._hand_out(lane, want.peer, count, own), own)
        last = self.closed and not lane.pending()
        if lane.queue and (last or lane.weight >= want.target):
            batch = list(self._run(lane, want.target))
            if want.own:
                self._take(lane, want.peer, batch)
                return Given(batch, sum(item.count for item in batch))
            lane.hold(want.peer, batch)
            return Given(batch, 0)
        if lane.rooms and not lane.pending():
            held = f"{lane.queued} items of weight {lane.weight:g}"
            return Stuck(f"a batch of weight {want.target:g}: the key is full with {held}")
        return None

    def _alone(self, lane: Lane, peer: str) -> bool:
        """Whether a consumer has the key for itself."""
        return lane.consumers <= {peer}

    @staticmethod
    def _run(lane: Lane, target: float) -> Iterator[Item]:
        weight, first = 0.0, True
        while lane.queue and (first or weight < target):
            head = lane.queue[0]
            item, first = lane.pop(_needed(head.weight, target - weight, head.count)), False
            weight += item.weight * item.count
            yield item


def _needed(weight: float, target: float, most: int) -> int:
    """How many items of a weight it takes; `most` where those are not enough."""
    if weight * most < target:
        return most
    count = min(most, max(1, math.ceil(target / weight))) if weight else 1
    while count > 1 and weight * (count - 1) >= target:
        count -= 1
    return count
