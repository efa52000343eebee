"""Sends and receives that wait for each other, in the order in which they came."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rlinf_graph.backends.ray.workers.errors import Failure
from rlinf_graph.backends.ray.workers.payload import About, Envelope
from rlinf_graph.backends.ray.workers.waits import Peer, Wait, named

Pair = tuple[Peer, Peer]
"""Who sends, and who receives."""


@dataclass(frozen=True)
class Problem:
    """Why an operation ended without a result: `mismatch`, `timeout`, `closed` or `failure`."""

    kind: str
    text: str = ""
    failure: Failure | None = None


@dataclass(frozen=True)
class Wanted:
    """What a receiver accepts: a tag, and what it knows of the value; None is anything."""

    tag: int | str | None = None
    kind: str | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None

    def complaint(self, tag: int | str | None, about: About) -> str:
        """What does not fit; empty when all does."""
        if tag != self.tag:
            return f"tag {tag!r} is sent, tag {self.tag!r} is expected"
        for name in ("kind", "shape", "dtype"):
            expected = getattr(self, name)
            if expected is not None and expected != getattr(about, name):
                return f"{about} is sent, {name} {expected} is expected"
        return ""


@dataclass(frozen=True)
class Receipt:
    """What a receiver gets: to be acknowledged by its number when the value is a reference."""

    number: int
    envelope: Envelope


@dataclass(eq=False)
class Pending:
    """Somebody who waits, in a call that a driver issued at that time of its clock."""

    wait: Wait
    what: Any
    issued: float
    tag: int | str | None = None
    answer: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(frozen=True)
class Reach:
    """Which waits a rank's end of a call ends: those that it is in, or that wait for it, of calls
    issued `until` then, which this one was, or of no call.

    Times are of the drivers' clocks; a call is known by its rank and when it was issued.
    """

    peer: Peer
    issued: float = math.nan
    until: float = math.inf

    def __contains__(self, one: Pending) -> bool:
        return one.issued <= self.until or math.isinf(one.issued)

    def is_own(self, one: Pending) -> bool:
        """Whether the rank waits in the call itself."""
        return one.wait.who == self.peer and one.issued == self.issued


class Matching:
    """Queues of sends and of receives for each pair of ranks."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._sends: dict[Pair, deque[Pending]] = defaultdict(deque)
        self._receives: dict[Pair, deque[Pending]] = defaultdict(deque)
        self._fetching: dict[int, tuple[Pending, Pending]] = {}
        self._count = 0

    def offer(self, pair: Pair, mine: Pending) -> None:
        """Somebody sends."""
        self._sends[pair].append(mine)
        self._match(pair)

    def want(self, pair: Pair, mine: Pending) -> None:
        """Somebody receives."""
        self._receives[pair].append(mine)
        self._match(pair)

    def remove(self, pair: Pair, mine: Pending) -> None:
        """Forget one that waits no longer; nothing when it has left its queue."""
        for queues in (self._sends, self._receives):
            if mine in queues.get(pair, ()):
                queues[pair].remove(mine)
        self._tidy(pair)

    def fetched(self, number: int) -> None:
        """A receiver has what it was referred to."""
        answer_all(self._fetching.pop(number, ()), None)

    def end(self, problem: Problem, reach: Reach) -> None:
        """Answer waits that a rank is in, or that wait for it."""
        for queues in (self._sends, self._receives):
            for pair in [pair for pair in queues if reach.peer in pair]:
                answer_all((one for one in queues[pair] if one in reach), problem)
                queues[pair] = deque(one for one in queues[pair] if one not in reach)
                self._tidy(pair)
        for number, ends in list(self._fetching.items()):
            of = any(reach.peer == one.wait.who for one in ends)
            if of and (any(map(reach.is_own, ends)) or all(one in reach for one in ends)):
                answer_all(self._fetching.pop(number), problem)

    def _match(self, pair: Pair) -> None:
        """Bring the ends together in the order in which they came."""
        sends, receives = self._sends[pair], self._receives[pair]
        while sends and receives:
            offer, want = sends.popleft(), receives.popleft()
            complaint = want.what.complaint(offer.tag, offer.what.about)
            if complaint:
                text = f"{named(pair[0])} and {named(pair[1])} do not agree: {complaint}"
                answer_all((offer, want), Problem("mismatch", text))
                continue
            self._count += 1
            want.answer.set_result(Receipt(self._count, offer.what))
            if offer.what.reference:
                self._fetching[self._count] = offer, want
            else:
                offer.answer.set_result(None)
        self._tidy(pair)

    def _tidy(self, pair: Pair) -> None:
        for queues in (self._sends, self._receives):
            if pair in queues and not queues[pair]:
                del queues[pair]


def answer_all(pending: Iterable[Pending], answer: Any) -> None:
    """The same to each that has no answer."""
    for one in pending:
        if not one.answer.done():
            one.answer.set_result(answer)
