"""The public channel: a queue between processes whose data take the shortest way.

    channel = Channel.create("rollouts", capacity=64)
    channel.put(batch)                      # in a producer
    for batch in channel: ...               # in a consumer, until all producers have closed

A channel can be passed to actors and tasks, or found by its name.
"""

from __future__ import annotations

import contextlib
import math
import uuid
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ray

from rlinf_graph.backends.ray.channel import carry, end, names, shared, steps
from rlinf_graph.backends.ray.channel.broker import Broker, Statistics
from rlinf_graph.backends.ray.channel.errors import Closed, EndOfStream, PeerFailed
from rlinf_graph.backends.ray.channel.lane import Limits
from rlinf_graph.backends.ray.channel.state import Key

WAITERS = 10_000
"""Requests that the broker can hear at once: those of all who wait."""


class Channel:
    """A queue of items by key, between any number of producers and consumers.

    Each item arrives once. Items of one producer under one key arrive in their order; where several
    consumers share a key, one that reads quickly is given items ahead, and those that it gives back
    may come later than younger ones, unless the channel is `ordered`. An item
    belongs to its receiver: arrays and tensors share memory with the object store and may be
    written. Tensors arrive on the CPU and without gradients. Items of more than 64 KB, and smaller
    ones that travel together and come to more than 90 KB, belong to the process that put them until
    they are taken: it has to live until then.
    """

    def __init__(self, broker: Any, name: str = "") -> None:
        """An end in this process; see `create` and `connect`.

        Raises:
            ChannelError: when the channel does not exist any more.
        """
        self._broker, self.name = broker, name
        self._end = end.end_of(broker)
        self._sender, self._receiver = self._end.sender, self._end.receiver
        self._id, self._closed = uuid.uuid4().hex, False
        weakref.finalize(self, end.drop, self._end).atexit = False

    @classmethod
    def create(
        cls,
        name: str = "",
        *,
        capacity: int | None = None,
        capacity_bytes: int | None = None,
        prioritised: bool = False,
        producers: int = 1,
        ordered: bool = False,
        shared_memory: bool | None = None,
    ) -> Channel:
        """A new channel. It lives as long as the process that creates it.

        Args:
            name: Under which other processes find it; it is free again when the channel is closed.
            capacity: Items that each key may hold for all producers and consumers together, with
                those on their way; no limit where it is None.
            capacity_bytes: Likewise, of the items' data.
            prioritised: Items of a higher priority first, those of the same one by age.
            producers: How many `Channel` objects have to close until the stream ends.
            ordered: Keep the order also where several consumers share a key: none of them is given
                items ahead of its gets, which takes a round trip for each item.
            shared_memory: Whether data may pass through memory of this machine, which all processes
                have to be on; None where the Ray cluster has no other machine now. Otherwise they
                pass through the object store.

        Raises:
            NameTaken: while another channel with that name is not closed.
            ValueError: for a capacity or a number of producers below 1.
        """
        if min(capacity or 1, capacity_bytes or 1, producers) < 1 or 0 in (
            capacity,
            capacity_bytes,
        ):
            raise ValueError("capacity, capacity_bytes and producers are at least 1")
        shares = (_one_machine() if shared_memory is None else shared_memory) and shared.possible()
        most = capacity or math.inf, capacity_bytes or math.inf
        limits = Limits(*most, prioritised, producers, shares, ordered)
        actor: Any = ray.remote(Broker)
        options = {"num_cpus": 0, "max_concurrency": WAITERS}
        if not name:
            return cls(actor.options(**options).remote(limits))
        with names.claimed(name) as unique:
            broker = actor.options(name=unique, **options).remote(limits)
            return cls(broker, name)

    @classmethod
    def connect(cls, name: str) -> Channel:
        """The open channel of a name.

        Raises:
            ChannelError: where there is none.
        """
        return cls(names.broker(name), name)

    def put(
        self,
        item: Any,
        key: Key = None,
        *,
        weight: float = 1,
        priority: float = 0,
        timeout: float | None = None,
    ) -> None:
        """Put an item, when its key has room for it. `timeout` is in seconds, None waits for ever.

        Raises:
            Closed: after the end of the stream was announced.
            TooLarge: for more bytes than the capacity.
            TimedOut: with what the key holds and who waits.
            PeerFailed: the first failure of a producer or a consumer.
            ValueError: for a negative weight.
        """
        self._require_open(weight)
        encoded = carry.encode(item)
        if not self._sender.try_put(encoded, key, weight, priority):
            steps.block(self._sender.put(encoded, key, weight, priority, timeout))

    def put_nowait(
        self, item: Any, key: Key = None, *, weight: float = 1, priority: float = 0
    ) -> None:
        """Put an item if its key has room now.

        Raises:
            Full: otherwise. For other errors see `put`.
        """
        self.put(item, key, weight=weight, priority=priority, timeout=0)

    async def aput(
        self,
        item: Any,
        key: Key = None,
        *,
        weight: float = 1,
        priority: float = 0,
        timeout: float | None = None,
    ) -> None:
        """`put` for event loops."""
        self._require_open(weight)
        await steps.wait(self._sender.put(carry.encode(item), key, weight, priority, timeout))

    def get(self, key: Key = None, *, timeout: float | None = None) -> Any:
        """Take the next item of a key. `timeout` is in seconds, None waits for ever.

        Raises:
            EndOfStream: when the channel is closed and empty.
            TimedOut: with what the key holds and who waits.
            PeerFailed: the first failure of a producer or a consumer.
        """
        if (found := self._receiver.try_get(key)) is not None:
            return found[0]
        return steps.block(self._receiver.get(key, timeout, own=True))

    def get_nowait(self, key: Key = None) -> Any:
        """Take the next item of a key if there is one that nobody waits for.

        Raises:
            Empty: otherwise. For other errors see `get`.
        """
        return self.get(key, timeout=0)

    async def aget(self, key: Key = None, *, timeout: float | None = None) -> Any:
        """`get` for event loops. When it is cancelled, the item stays in the channel."""
        return await steps.wait(self._receiver.get(key, timeout, own=False))

    def get_batch(
        self, weight: float, key: Key = None, *, timeout: float | None = None
    ) -> list[Any]:
        """Take the fewest next items whose weights come to at least `weight`, all or none.

        There is at least one item; one that is heavier comes alone. Callers are served in their
        order. After the end of the stream what is left is a last, lighter batch.

        Raises:
            Stuck: when the key is full, so that the weight can never come together.
            EndOfStream, TimedOut, PeerFailed: see `get`.
        """
        return steps.block(self._receiver.get_batch(weight, key, timeout, own=True))

    async def aget_batch(
        self, weight: float, key: Key = None, *, timeout: float | None = None
    ) -> list[Any]:
        """`get_batch` for event loops. When it is cancelled, the items stay in the channel."""
        return await steps.wait(self._receiver.get_batch(weight, key, timeout, own=False))

    def __iter__(self) -> Iterator[Any]:
        """Items of the key None until the end of the stream."""
        with contextlib.suppress(EndOfStream):
            while True:
                yield self.get()

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Items of the key None until the end of the stream."""
        with contextlib.suppress(EndOfStream):
            while True:
                yield await self.aget()

    def flush(self) -> None:
        """Wait until the broker knows of everything that this end has put.

        Raises:
            PeerFailed: the first failure of a producer or a consumer.
        """
        steps.block(self._sender.flush())

    def close(self) -> None:
        """This end puts nothing more. When all producers have said so, the stream ends.

        Raises:
            PeerFailed: the first failure of a producer or a consumer.
        """
        self._closed = True
        steps.block(self._sender.close(self._id))
        if self.name and ray.get(self._broker.is_over.remote()):
            names.release(self.name, self._broker)

    def leave(self) -> None:
        """This process is done: nothing is lost and its death is no failure from now on."""
        self._end.leave()

    def fail(self, error: BaseException) -> None:
        """Raise an error at everybody who uses the channel, now and later. The first one stays."""
        peer = self._end.peer
        failure = PeerFailed(f"{peer} failed: {type(error).__name__}: {error}")
        ray.get(self._broker.fail.remote(peer.id, failure))
        if self.name:
            names.release(self.name, self._broker)

    def statistics(self) -> Statistics:
        """What is where; items that are not sent yet are not counted."""
        return ray.get(self._broker.statistics.remote())

    def __enter__(self) -> Channel:
        """Close at the end of the block, or fail with what it raises."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self.close()
        else:
            self.fail(error)

    def _require_open(self, weight: float) -> None:
        if not weight >= 0:
            raise ValueError(f"a weight is at least 0, not {weight}")
        if self._closed:
            raise Closed("this end of the channel is closed")

    def __reduce__(self) -> tuple[Any, ...]:
        return Channel, (self._broker, self.name)


def _one_machine() -> bool:
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) == 1
