"""One key of a channel: what it holds, and who waits for it."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Row(NamedTuple):
    """An item on its way to the broker: its number in the block that holds its data."""

    index: int
    weight: float
    nbytes: int
    priority: float


class Item(NamedTuple):
    """An item at the broker. Items are ordered by their first two fields."""

    order: float
    sequence: int
    weight: float
    nbytes: int
    block: Any
    index: int


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
    """What a consumer gets: `taken` items are its own, the others are held for it."""

    items: list[Item]
    taken: int


@dataclass
class Lane:
    """One key. `items` and `nbytes` are in use: queued, leased or held."""

    queue: list[Item] = field(default_factory=list)
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
        """An item comes, or comes back."""
        heapq.heappush(self.queue, item)
        self.weight += item.weight

    def pop(self) -> Item:
        """The next item by priority and age."""
        item = heapq.heappop(self.queue)
        self.weight = self.weight - item.weight if self.queue else 0.0
        return item

    def free(self, items: Iterable[Item]) -> None:
        """A consumer has taken items."""
        for item in items:
            self.items -= 1
            self.nbytes -= item.nbytes
            self.went += 1

    def others_hold(self, peer: str) -> bool:
        """Whether items are held for other consumers."""
        return any(held for other, held in self.held.items() if other != peer)

    def pending(self) -> bool:
        """Whether leases or held items may still turn into queued ones."""
        return bool(self.leases) or any(self.held.values())
