"""Which memory of producers is still to be read, and by whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rlinf_graph.backends.ray.channel.carry import Block
from rlinf_graph.backends.ray.channel.lane import Item
from rlinf_graph.backends.ray.channel.shared import Segment


class Reading:
    """Counts items: a segment is free when all items in it have been read, or those who took them
    are gone. What a consumer tells may come before the broker hears that it took the items, and
    after its end was seen."""

    def __init__(self) -> None:
        """Nothing is to be read."""
        self._unread: dict[Segment, int] = defaultdict(int)
        self._taken: dict[str, dict[Segment, int]] = defaultdict(lambda: defaultdict(int))
        self._free: dict[str, list[Segment]] = defaultdict(list)
        self._gone: set[str] = set()

    def came(self, block: Any, items: int) -> None:
        """A producer has put items of a block."""
        segment = _segment(block)
        if segment is not None:
            self._unread[segment] += items

    def took(self, peer: str, items: Iterable[Item]) -> None:
        """A consumer has taken items."""
        for item in items:
            segment = _segment(item.block)
            if segment is not None and peer in self._gone:
                self._less(segment, item.count)
            elif segment is not None:
                self._count(peer, segment, item.count)

    def read(self, peer: str, segments: Iterable[tuple[Segment, int]]) -> None:
        """A consumer has read so many items of segments."""
        for segment, items in segments if peer not in self._gone else ():
            self._count(peer, segment, -items)
            self._less(segment, items)

    def reads(self, peer: str) -> bool:
        """Whether a consumer has items that it has not read to the end."""
        return peer in self._taken

    def gone(self, peer: str) -> None:
        """A consumer's process has ended: what it has taken is not read any more."""
        self._gone.add(peer)
        for segment, items in self._taken.pop(peer, {}).items():
            self._less(segment, items)

    def freed(self, producer: str) -> list[Segment]:
        """Segments that have become free since this was asked last."""
        return self._free.pop(producer, [])

    def _count(self, peer: str, segment: Segment, items: int) -> None:
        mine = self._taken[peer]
        mine[segment] += items
        if not mine[segment]:
            del mine[segment]
            if not mine:
                del self._taken[peer]

    def _less(self, segment: Segment, items: int) -> None:
        self._unread[segment] -= items
        if not self._unread[segment]:
            del self._unread[segment]
            self._free[segment.peer].append(segment)


def _segment(block: Any) -> Segment | None:
    return block.data if isinstance(block, Block) and isinstance(block.data, Segment) else None
