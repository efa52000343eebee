"""What ranks of a run wait for, and what ends their waits. No processes, no threads, no clock.

One `State` for the whole run is with the board, one for what stays inside a process with `Nearby`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from rlinf_graph.backends.edges import Extent
from rlinf_graph.backends.engines import Kept
from rlinf_graph.ir.position import Moment
from rlinf_graph.ir.program import Channel, Program

Call = tuple[str, tuple[Any, ...]]
"""A method of `State`, and its arguments."""

Place = tuple[str, Moment]
"""An edge at a moment."""


Buckets = list[Any]
"""Weights: pickled lists of pieces, or references of such lists."""

SMALL = 65_536
"""Bytes that travel with the message: a write and a read of the object store take about a
millisecond of each side, whatever the size."""


def refers(members: Sequence[Buckets]) -> bool:
    """Whether there are references among the buckets."""
    return any(not isinstance(bucket, bytes) for buckets in members for bucket in buckets)


class Held(NamedTuple):
    """A batch on its way to another process: its name in the run, and bytes or a reference."""

    name: tuple[str, int, int]
    data: Any


class Newest(NamedTuple):
    """The newest version of a model's weights, and those."""

    version: int
    weights: list[Buckets]


Part = tuple[Extent, Any]
"""Sample indices, and what holds them: inside a process a part of an edge, else a `Held`."""

Wanted = tuple[Extent, frozenset[int]]
"""Samples that a consumer waits for, and the numbers of the parts that it has."""


@dataclass(frozen=True)
class Question:
    """What a rank waits for: conditions, each with the name under which it changes; and what it is
    answered, and what that changes, when all of them hold."""

    needs: Sequence[tuple[str, Callable[[], bool]]]
    answer: Callable[[], Any] = lambda: None

    def blocked_by(self) -> str | None:
        """The name of the first condition that does not hold."""
        return next((name for name, holds in self.needs if not holds()), None)


class Queue:
    """An edge: which samples of which moment are accounted for, and where they are."""

    def __init__(self, channel: Channel, consumers: int) -> None:
        """Nothing has come."""
        self.channel, self.consumers = channel, consumers
        self.parts: dict[Moment, list[Part]] = {}
        self.freed: dict[Moment, int] = defaultdict(int)

    def has_room(self, moment: Moment) -> bool:
        """Whether samples of a moment may come."""
        return moment in self.parts or len(self.parts) < self.channel.capacity

    def open(self, moment: Moment) -> None:
        """From now on the moment has its place."""
        self.parts.setdefault(moment, [])

    def put(self, moment: Moment, part: Part) -> None:
        """Samples have come."""
        self.parts[moment].append(part)

    def has(self, moment: Moment, rows: Extent) -> bool:
        """Whether all these samples have come."""
        come = self.parts.get(moment)
        return bool(come) and rows.within([extent for extent, _held in come])

    def holding(self, moment: Moment, rows: Extent, known: Collection[int]) -> dict[int, Part]:
        """The parts with these samples that a consumer does not know, by their numbers. An only
        consumer needs all parts, and is given those that have come."""
        return {
            number: part
            for number, part in enumerate(self.parts[moment])
            if number not in known and (self.consumers == 1 or part[0].meets(rows))
        }

    def free(self, moment: Moment) -> None:
        """A consumer needs nothing more of a moment; after the last one it is forgotten."""
        self.freed[moment] += 1
        if self.freed[moment] == self.consumers:
            for held in (self.parts, self.freed):
                held.pop(moment, None)


class Ring:
    """Turns on shared devices."""

    def __init__(self, sizes: list[int]) -> None:
        """`sizes` are how many ranks have each turn."""
        self.sizes, self.turn, self.round, self.released = sizes, 0, 0, 0
        self.taken: dict[tuple[str, int], int] = defaultdict(int)

    def may(self, position: int, key: tuple[str, int]) -> bool:
        """Whether it is a rank's turn."""
        return (self.round, self.turn) == (self.taken[key], position)

    def take(self, key: tuple[str, int]) -> None:
        """A rank has its turn."""
        self.taken[key] += 1

    def release(self) -> None:
        """A turn is over for one rank."""
        self.released += 1
        if self.released == self.sizes[self.turn]:
            self.released = 0
            self.turn = (self.turn + 1) % len(self.sizes)
            self.round += self.turn == 0


class State:
    """Edges between some groups, rings that only they are on, weights and addresses.

    Some methods give a `Question`; the others take in what is told, and give the name of what has
    changed.
    """

    def __init__(self, program: Program, groups: Collection[str], kept: Kept) -> None:
        """Nothing has come. `kept` says which versions of the weights are held."""
        self.queues: Mapping[str, Queue] = {
            channel.edge: Queue(channel, program.group(channel.target).ranks)
            for channel in program.channels
            if channel.source.node in groups and channel.target in groups
        }
        self.rings: Mapping[str, Ring] = {
            r.name: Ring([sum(program.group(n).ranks for n in names) for names in r.positions])
            for r in program.rings
            if all(name in groups for names in r.positions for name in names)
        }
        self._versions: dict[str, dict[int, Any]] = defaultdict(dict)
        self._kept = kept
        self._addresses: dict[str, str] = {}

    def room(self, places: Sequence[Place]) -> Question:
        """Edges take samples of moments; from then on their places are taken."""
        queues = [(self.queues[edge], moment) for edge, moment in places]

        def open_all() -> None:
            for queue, moment in queues:
                queue.open(moment)

        return Question([(q.channel.edge, partial(q.has_room, m)) for q, m in queues], open_all)

    def put(self, place: Place, part: Part) -> str:
        """Samples of an edge are there."""
        edge, moment = place
        self.queues[edge].put(moment, part)
        return edge

    def get(self, wanted: Mapping[Place, Wanted]) -> Question:
        """Samples of some edges are there; by place and number, the parts that hold them."""
        looked = [
            (self.queues[edge], moment, rows, known)
            for (edge, moment), (rows, known) in wanted.items()
        ]

        def found() -> dict[Place, dict[int, Part]]:
            return {(q.channel.edge, m): q.holding(m, rows, known) for q, m, rows, known in looked}

        return Question([(q.channel.edge, partial(q.has, m, rows)) for q, m, rows, _ in looked],
                        found)  # fmt: skip

    def free(self, place: Place) -> str:
        """A consumer is done with a moment of an edge."""
        edge, moment = place
        self.queues[edge].free(moment)
        return edge

    def acquire(self, who: tuple[str, int], ring: str, position: int) -> Question:
        """It is a rank's turn."""
        state = self.rings[ring]
        return Question([(ring, lambda: state.may(position, who))], lambda: state.take(who))

    def release(self, ring: str) -> str:
        """A turn is over for one rank."""
        self.rings[ring].release()
        return ring

    def publish(self, model: str, version: int, weights: Any) -> str:
        """A version of a model's weights is there."""
        kept = self._versions[model]
        kept[version] = weights
        for old in self._kept.past(model, list(kept), version):
            del kept[old]
        return f"weights of {model}"

    def weights(self, model: str, version: int) -> Question:
        """A version of a model's weights is there."""
        kept = self._versions[model]
        return Question([(f"weights of {model}", lambda: version in kept)], lambda: kept[version])

    def newer(self, model: str, every: int, held: int) -> Question:
        """A delivered version is there that is newer than the one held: the newest of them, and
        its weights, which a later question may find no more."""
        kept = self._versions[model]

        def found() -> int:
            return max((v for v in kept if v % every == 0), default=0)

        def answer() -> Newest:
            return Newest(found(), kept[found()])

        return Question([(f"weights of {model}", lambda: found() > held)], answer)

    def offer(self, group: str, address: str) -> str:
        """Where rank 0 of a group meets the others."""
        self._addresses[group] = address
        return f"address of {group}"

    def meet(self, group: str) -> Question:
        """The address of rank 0 of one's group is known."""
        known = self._addresses
        return Question([(f"address of {group}", lambda: group in known)], lambda: known[group])

    def nothing(self) -> Question:
        """What was told before has been heard."""
        return Question([])
