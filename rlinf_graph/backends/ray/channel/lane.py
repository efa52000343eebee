"""One key of a channel: what it holds, and who waits for it."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Row(NamedTuple):
    """Items on their way to the broker that are alike and follow one another: the number of the
    first in the block that holds their data, the weight and size of each, and how many."""

    index: int
    weight: float
    nbytes: int
    priority: float
    count: int = 1


class Item(NamedTuple):
    """Items at the broker, alike and in a row. They are ordered by their first two fields; the
    sequence numbers are `sequence` and the next `count - 1`."""

    order: float
    sequence: int
    weight: float
    nbytes: int
    block: Any
    index: int
    count: int = 1

    def cut(self, count: int) -> tuple[Item, Item]:
        """The first `count` of them, and the others."""
        rest = {"sequence": self.sequence + count, "index": self.index + count}
        return self._replace(count=count), self._replace(count=self.count - count, **rest)


Span = tuple[int, int]
"""Items by their sequence numbers: the first, and how many."""


class Limits(NamedTuple):
    """What each key of a channel may hold, and how often `close` is called until it is closed.
    `shares` says that its processes share memory, `ordered` that no
    consumer may be given items ahead while there are several."""

    items: float = math.inf
    nbytes: float = math.inf
    prioritised: bool = False
    producers: int = 1
    shares: bool = False
    ordered: bool = False


class Room(NamedTuple):
    """A producer that waits for room."""

    ticket: Any
    peer: str
    nbytes: int
    ask: int


class Want(NamedTuple):
    """A consumer that waits: for one item (and up to `count`), or for a batch of a weight."""

    ticket: Any
    peer: str
    count: int
    target: float | None
    own: bool


class Given(NamedTuple):
    """What a consumer gets: the first `taken` items are its own, the others are held for it."""

    items: list[Item]
    taken: int


@dataclass
class Lane:
    """One key. `items` and `nbytes` are in use: queued, leased or held. `queued` counts the items
    of the queue; those that are held are found by the first of their sequence numbers."""

    queue: list[Item] = field(default_factory=list)
    queued: int = 0
    weight: float = 0.0
    items: int = 0
    nbytes: int = 0
    leases: dict[str, tuple[int, int]] = field(default_factory=dict)
    held: dict[str, dict[int, Item]] = field(default_factory=lambda: defaultdict(dict))
    rooms: deque[Room] = field(default_factory=deque)
    wants: deque[Want] = field(default_factory=deque)
    consumers: set[str] = field(default_factory=set)
    came: int = 0
    went: int = 0
    most: int = 0

    def push(self, item: Item) -> None:
        """Items come, or come back."""
        heapq.heappush(self.queue, item)
        self.queued += item.count
        self.weight += item.weight * item.count

    def pop(self, most: int = 1) -> Item:
        """The next items by priority and age, at most so many; they are alike."""
        item = self.queue[0]
        if item.count <= most:
            heapq.heappop(self.queue)
        else:
            item, self.queue[0] = item.cut(most)  # what is left is still before all others
        self.queued -= item.count
        self.weight = self.weight - item.weight * item.count if self.queue else 0.0
        return item

    def hold(self, peer: str, items: Iterable[Item]) -> None:
        """Items are held for a consumer."""
        self.held[peer].update((item.sequence, item) for item in items)

    def let_go(self, peer: str, spans: Iterable[Span]) -> Iterator[Item]:
        """Those of the items that were held for a consumer."""
        held = self.held[peer]
        for first, count in spans:
            at, end = first, first + count
            while at < end:
                item = held.pop(at, None) or self._cut_before(held, at)
                if item is None:
                    at += 1
                    continue
                if at + item.count > end:
                    item, rest = item.cut(end - at)
                    held[end] = rest
                yield item
                at += item.count

    @staticmethod
    def _cut_before(held: dict[int, Item], at: int) -> Item | None:
        """The items from a sequence number on, of those that begin earlier."""
        for first, item in held.items():
            if first < at < first + item.count:
                held[first], rest = item.cut(at - first)
                return rest
        return None

    def free(self, items: Iterable[Item]) -> None:
        """A consumer has taken items."""
        for item in items:
            self.items -= item.count
            self.nbytes -= item.nbytes * item.count
            self.went += item.count

    def pending(self) -> bool:
        """Whether leases or held items may still turn into queued ones."""
        return bool(self.leases) or any(self.held.values())
