"""Items that have come to a consumer and are not read yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray

from rlinf_graph.backends.ray.channel.broker import Run
from rlinf_graph.backends.ray.channel.carry import Block, Opened
from rlinf_graph.backends.ray.channel.lane import Span
from rlinf_graph.backends.ray.channel.shared import Segment, Window
from rlinf_graph.backends.ray.channel.steps import Steps


class Source:
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


class Here(NamedTuple):
    """An item at this process."""

    source: Source
    index: int
    sequence: int


@dataclass
class Stretch:
    """Items in a row at this process, of which the first are read."""

    source: Source
    index: int
    sequence: int
    count: int


@dataclass
class Arrivals:
    """Those of one key. `left` items are here; `taken` is what the broker has not been told yet,
    `ahead` a question to it."""

    here: deque[Stretch] = field(default_factory=deque)
    left: int = 0
    taken: list[Span] = field(default_factory=list)
    want: int = 1
    asked: float = 0.0
    last: float = 0.0
    ahead: Any = None

    def pop(self) -> Here:
        """The next item."""
        stretch = self.here[0]
        item = Here(stretch.source, stretch.index, stretch.sequence)
        self.left -= 1
        if stretch.count == 1:
            self.here.popleft()
        else:
            stretch.index += 1
            stretch.sequence += 1
            stretch.count -= 1
        return item

    def add(self, stretches: Sequence[Stretch], *, first: bool = False) -> None:
        """Items have come: by age among those that are here, or before all where they are the
        `first`."""
        late = self.here and stretches and stretches[0].sequence < self.here[-1].sequence
        if first:
            self.here.extendleft(reversed(stretches))
        else:
            self.here.extend(stretches)
        if late and not first:
            self.here = deque(sorted(self.here, key=lambda stretch: stretch.sequence))
        self.left += sum(stretch.count for stretch in stretches)

    def take(self, sequence: int) -> None:
        """An item is read, which the broker will be told."""
        if self.taken:
            first, count = self.taken[-1]
            if first + count == sequence:
                self.taken[-1] = first, count + 1
                return
        self.taken.append((sequence, 1))


def stretches(runs: Sequence[Run]) -> list[Stretch]:
    """Items as the broker gives them; those of a block share its source."""
    found: list[Stretch] = []
    last: Any = None
    for block, index, sequence, count in runs:
        source = found[-1].source if found and block is last else Source(block)
        last = block
        found.append(Stretch(source, index, sequence, count))
    return found


def after_first(items: list[Stretch]) -> list[Stretch]:
    """All but the first item, which alone is left in `items`."""
    first, *others = items
    if first.count > 1:
        after = Stretch(first.source, first.index + 1, first.sequence + 1, first.count - 1)
        others.insert(0, after)
        first.count = 1
    items[1:] = []
    return others


def single(items: list[Stretch]) -> Here:
    """The only item."""
    (first,) = items
    return Here(first.source, first.index, first.sequence)


def each(items: list[Stretch]) -> Iterator[Here]:
    """Item by item."""
    for item in items:
        for number in range(item.count):
            yield Here(item.source, item.index + number, item.sequence + number)
