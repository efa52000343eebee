"""The actor that knows where a channel's items are. Data pass it only in small messages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlinf_graph.backends.ray.channel import peers
from rlinf_graph.backends.ray.channel.errors import ChannelError, PeerFailed, TimedOut
from rlinf_graph.backends.ray.channel.lane import Given, Item, Limits, Row, Span
from rlinf_graph.backends.ray.channel.peers import Fate, Peer
from rlinf_graph.backends.ray.channel.shared import Segment
from rlinf_graph.backends.ray.channel.state import Exchange, Key

LOOKS_S = 0.5
"""Seconds between looks at the peers' processes."""

CAUSE_S = 5.0
"""Seconds within which Ray knows who has died, when what it owned cannot be read any more."""


class Group(NamedTuple):
    """Items of one key in a message, and how many more the producer would like to put."""

    key: Key
    block: Any
    rows: list[Row]
    ask: int


class Notice(NamedTuple):
    """What a consumer or producer tells about a key: items taken, items and lease given back,
    and how many items of which segments it has finished reading."""

    key: Key
    taken: Sequence[Span]
    back: Sequence[Span]
    lease: tuple[int, int] = (0, 0)
    freed: Sequence[tuple[Segment, int]] = ()


class Run(NamedTuple):
    """Items in a row: their block, the numbers of the first there and at the broker, how many."""

    block: Any
    index: int
    sequence: int
    count: int


class Reply(NamedTuple):
    """An answer, or an error to be raised at the caller."""

    value: Any
    error: ChannelError | None = None

    def taken(self) -> Any:
        """The value, or the error is raised.

        Nothing may hold the reply then: the error's traceback would hold it, too, and everything
        that its frames hold would stay until the next garbage collection.
        """
        try:
            if self.error is not None:
                raise self.error
            return self.value
        finally:
            del self


@dataclass(frozen=True)
class KeyStatistics:
    """One key: items that came and went, that are there, and the most that ever were."""

    put: int
    got: int
    queued: int
    weight: float
    nbytes: int
    most: int
    waiting_puts: int
    waiting_gets: int


@dataclass(frozen=True)
class Statistics:
    """A channel at one moment."""

    keys: Mapping[Key, KeyStatistics]
    peers: tuple[str, ...]
    messages: int
    closed: bool


class Broker:
    """An `Exchange` that processes share. Requests of one process are heard in their order."""

    def __init__(self, limits: Limits) -> None:
        """An open channel."""
        self._exchange = Exchange(limits, self._resolve)
        self._waiting: dict[Any, asyncio.Future[Any]] = {}
        self._peers: dict[str, Peer] = {}
        self._heard: dict[str, tuple[str, float]] = {}
        self._left: dict[str, Peer] = {}
        self._turns: dict[str, int] = defaultdict(int)
        self._early: dict[tuple[str, int], asyncio.Future[None]] = {}
        self._messages = 0
        self._look: asyncio.Task[None] | None = None

    async def join(self, peer: Peer) -> Limits:
        """A process will use the channel; what it may hold.

        Raises:
            ChannelError: for a process of another machine, where memory is shared.
        """
        if self._exchange.limits.shares and peer.machine != peers.machine():
            raise ChannelError(
                f"{peer} is on another machine; create the channel with shared_memory=False"
            )
        self._peers[peer.id] = peer
        if self._look is None:
            self._look = asyncio.create_task(self._watch())
        return self._exchange.limits

    async def lease(
        self, ticket: Any, number: int, key: Key, nbytes: int, ask: int, timeout: float | None
    ) -> Reply:
        """Room for an item; see `Exchange.lease`. A timeout of 0 s does not wait."""
        self._hear(ticket[0], f"put under {key!r}")
        await self._turn(f"leases of {ticket[0]}", number)
        future = self._expect(ticket)
        wait = timeout is None or timeout > 0
        self._exchange.lease(ticket, ticket[0], key, nbytes, ask, wait=wait)
        return await self._answer(ticket, future, timeout, f"put under key {key!r}", key)

    async def put(self, peer: str, number: int, groups: Sequence[Group]) -> Reply:
        """Leased items are here; by key, what is leased besides; segments that are free.
        `number` counts the peer's.
        """
        self._hear(peer, "put")
        await self._turn(f"puts of {peer}", number)
        added: dict[Key, tuple[int, int]] = {}
        try:
            for key, block, rows, ask in groups:
                more = self._exchange.put(peer, key, block, rows, ask)
                items, nbytes = added.get(key, (0, 0))
                added[key] = items + more[0], nbytes + more[1]
        except ChannelError as error:
            return Reply((added, []), error)
        return Reply((added, self._exchange.reading.freed(peer)))

    async def take(
        self,
        ticket: Any,
        number: int,
        notice: Notice,
        count: int,
        target: float | None,
        timeout: float | None,
        own: bool,
    ) -> Reply:
        """Items for a consumer: runs, and how many of them are taken. See `Exchange.take`."""
        peer, key = ticket[0], notice.key
        self._hear(peer, f"get from {key!r}")
        await self._turn(f"gets of {peer}", number)
        self._note(peer, notice)
        future = self._expect(ticket)
        wait = timeout is None or timeout > 0
        self._exchange.take(ticket, peer, key, count, target, wait=wait, own=own)
        what = "get" if target is None else f"get_batch of weight {target:g}"
        return await self._answer(ticket, future, timeout, f"{what} from key {key!r}", key)

    async def ahead(self, peer: str, number: int, notice: Notice, count: int) -> Reply:
        """Items to hold for a consumer, without waiting."""
        self._hear(peer, f"get from {notice.key!r}")
        await self._turn(f"gets of {peer}", number)
        self._note(peer, notice)
        return Reply((_runs(self._exchange.ahead(peer, notice.key, count)), 0))

    async def tell(self, peer: str, notices: Sequence[Notice], number: int | None = None) -> None:
        """Items were taken, items and leases come back; `number` is of a consumer's message."""
        self._messages += 1
        if number is not None:
            await self._turn(f"gets of {peer}", number)
        for notice in notices:
            self._note(peer, notice)

    async def withdraw(self, ticket: Any, among: str, number: int) -> None:
        """Nobody waits for the answer any more. If there is one already, it stands. `number` counts
        the peer's messages `among` its gets or leases."""
        await self._turn(f"{among} of {ticket[0]}", number)
        if self._exchange.withdraw(ticket):
            self._resolve(ticket, TimedOut("withdrawn"))

    async def close(self, closer: str) -> Reply:
        """A producer puts nothing more."""
        self._exchange.close(closer)
        return Reply(self._exchange.closed, self._exchange.failure)

    async def freed(self, peer: str) -> list[Segment] | None:
        """Segments of a producer that are free; None for all, when the channel has failed."""
        return None if self._exchange.failure else self._exchange.reading.freed(peer)

    async def leave(self, peer: str, number: int) -> None:
        """A process is done with the channel. `number` is of a consumer's message."""
        await self._turn(f"gets of {peer}", number)
        self._forget(peer)

    async def fail(self, peer: str, error: PeerFailed) -> None:
        """Raise an error at all peers. The first one stays."""
        self._peers.pop(peer, None)
        self._exchange.fail(error)

    async def cause(self) -> PeerFailed | None:
        """Why something is gone: the channel's failure, which may be about to be seen."""
        deadline = time.monotonic() + CAUSE_S
        while self._exchange.failure is None and time.monotonic() < deadline:
            await self._look_at_peers()
            await asyncio.sleep(CAUSE_S / 100)
        return self._exchange.failure

    async def is_over(self) -> bool:
        """Whether a new channel may have the name: closed or failed."""
        return self._exchange.closed or self._exchange.failure is not None

    async def statistics(self) -> Statistics:
        """What is where."""
        keys = {
            key: KeyStatistics(
                lane.came,
                lane.went,
                lane.queued,
                lane.weight,
                lane.nbytes,
                lane.most,
                len(lane.rooms),
                len(lane.wants),
            )
            for key, lane in self._exchange.lanes.items()
        }
        names = tuple(str(peer) for peer in self._peers.values())
        return Statistics(keys, names, self._messages, self._exchange.closed)

    async def _turn(self, whose: str, number: int) -> None:
        """Wait until the messages before this one have been heard: Ray may start calls of an
        asynchronous actor out of order."""
        if number != self._turns[whose]:
            self._early[whose, number] = asyncio.get_running_loop().create_future()
            await self._early[whose, number]
            del self._early[whose, number]
        self._turns[whose] = number + 1
        following = self._early.get((whose, number + 1))
        if following is not None:
            following.set_result(None)

    def _hear(self, peer: str, what: str) -> None:
        self._messages += 1
        self._heard[peer] = what, time.monotonic()

    def _note(self, peer: str, notice: Notice) -> None:
        key, taken, back, lease, freed = notice
        self._exchange.reading.read(peer, freed)
        if taken:
            self._exchange.confirm(peer, key, taken)
        if back:
            self._exchange.put_back(peer, key, back)
        if any(lease):
            self._exchange.give_back(peer, key, *lease)

    def _expect(self, ticket: Any) -> asyncio.Future[Any]:
        self._waiting[ticket] = future = asyncio.get_running_loop().create_future()
        return future

    def _resolve(self, ticket: Any, answer: Any) -> None:
        self._waiting.pop(ticket).set_result(answer)

    async def _answer(
        self, ticket: Any, future: asyncio.Future[Any], timeout: float | None, what: str, key: Key
    ) -> Reply:
        if not future.done() and timeout is not None:
            await asyncio.wait([future], timeout=timeout)
            if not future.done():
                told = f"{what} waited {timeout:g} s: {self._exchange.describe(key)}{self._who()}"
                self._exchange.withdraw(ticket)
                if ticket in self._waiting:
                    self._resolve(ticket, TimedOut(told))
        answer = await future
        if isinstance(answer, ChannelError):
            return Reply(None, answer)
        if isinstance(answer, Given):
            return Reply((_runs(answer.items), answer.taken))
        return Reply(answer)

    def _who(self) -> str:
        now = time.monotonic()
        lines = []
        for peer in self._peers.values():
            what, when = self._heard.get(peer.id, ("has not called yet", now))
            role = "producer" if peer.id in self._exchange.producers else "consumer"
            state = "; its process is stopped" if peers.is_stopped(peer) else ""
            lines.append(f"\n  {role} {peer}: last {what}, {now - when:.1f} s ago{state}")
        return "".join(lines)

    async def _watch(self) -> None:
        """The death of a peer that has not left is everybody's failure."""
        while self._exchange.failure is None:
            await asyncio.sleep(LOOKS_S)
            with contextlib.suppress(Exception):  # of Ray, which may answer the next look
                await self._look_at_peers()

    async def _look_at_peers(self) -> None:
        for peer in list(self._peers.values()):
            fate = await asyncio.to_thread(peers.fate, peer)
            if fate is Fate.ALIVE or peer.id not in self._peers:
                continue
            self._forget(peer.id)
            if fate is Fate.DEAD:
                self._exchange.fail(PeerFailed(f"{peer} died without leaving"))
        for peer in list(self._left.values()):
            ended = await asyncio.to_thread(peers.fate, peer) is not Fate.ALIVE
            if ended:
                self._exchange.reading.gone(peer.id)
            if ended or not self._exchange.reading.reads(peer.id):
                self._left.pop(peer.id, None)  # another look may have been faster

    def _forget(self, peer: str) -> None:
        """A peer leaves. It may still read what it has taken, until its process ends."""
        self._exchange.leave(peer)
        if peer in self._peers:
            self._left[peer] = self._peers.pop(peer)


def _runs(items: Sequence[Item]) -> list[Run]:
    """Items that follow one another in a block together."""
    runs: list[Run] = []
    for item in items:
        run = Run(item.block, item.index, item.sequence, item.count)
        last = runs[-1] if runs else None
        if last and last.block is run.block and _follows(last, run):
            runs[-1] = last._replace(count=last.count + run.count)
        else:
            runs.append(run)
    return runs


def _follows(last: Run, run: Run) -> bool:
    after = last.index + last.count, last.sequence + last.count
    return after == (run.index, run.sequence)
