"""Channels and groups as they are often written first. Each fault that the tests know is in here.

They show that the scenarios of `test_known_faults.py` can fail; nothing else uses them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ray

FOREVER = 1 << 30


@ray.remote(num_cpus=0)
class Queue:
    """One queue for all keys: what does not fit waits, whatever its key is."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.items = capacity, defaultdict[Any, list[Any]](list)
        self.changed = asyncio.Condition()

    async def put(self, item: Any, key: Any, weight: float) -> None:
        async with self.changed:
            full = self.changed.wait_for(lambda: sum(map(len, self.items.values())) < self.capacity)
            await full
            self.items[key].append((item, weight))
            self.changed.notify_all()

    async def get(self, key: Any) -> tuple[Any, float]:
        async with self.changed:
            await self.changed.wait_for(lambda: bool(self.items[key]))
            self.changed.notify_all()
            return self.items[key].pop(0)

    async def first(self, key: Any) -> tuple[Any, float]:
        """Look at the next item, and leave it there."""
        async with self.changed:
            await self.changed.wait_for(lambda: bool(self.items[key]))
            return self.items[key][0]


class NaiveChannel:
    """A queue in an actor. A name leads to the actor that has it; puts do not wait."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.sent = actor, list[Any]()

    @classmethod
    def create(cls, name: str = "", *, capacity: int | None = None) -> NaiveChannel:
        named: dict[str, Any] = {"name": name, "get_if_exists": True} if name else {}
        return cls(Queue.options(max_concurrency=100, **named).remote(capacity or FOREVER))

    def put(self, item: Any, key: Any = None, *, weight: float = 1) -> None:
        self.sent.append(self.actor.put.remote(item, key, weight))

    def put_nowait(self, item: Any, key: Any = None) -> None:
        """Meant not to wait, and does: the queue has no other put."""
        ray.get(self.actor.put.remote(item, key, 1))

    def flush(self) -> None:
        ray.get(self.sent)

    def get(self, key: Any = None, *, timeout: float | None = None) -> Any:
        return ray.get(self.actor.get.remote(key), timeout=timeout)[0]

    def get_batch(self, weight: float, key: Any = None) -> list[Any]:
        """Items one by one, while the next one fits."""
        batch: list[Any] = []
        while weight > 0:
            _item, more = ray.get(self.actor.first.remote(key))
            if more > weight:
                break
            batch.append(ray.get(self.actor.get.remote(key))[0])
            weight -= more
        return batch

    def close(self) -> None:
        ray.kill(self.actor)


@ray.remote(num_cpus=0)
class Mailroom:
    """Messages between ranks in the order in which they come, about nothing in particular."""

    def __init__(self) -> None:
        self.boxes = defaultdict[Any, asyncio.Queue[Any]](asyncio.Queue)

    async def put(self, pair: Any, message: Any) -> None:
        await self.boxes[pair].put(message)

    async def get(self, pair: Any) -> Any:
        return await self.boxes[pair].get()


class NaiveLink:
    """A send is two messages, as over gloo: what comes, and then the thing itself."""

    def __init__(self) -> None:
        self.room = Mailroom.options(max_concurrency=100).remote()

    def send(self, value: Any, source: Any, target: Any) -> None:
        ray.get(self.room.put.remote((source, target), type(value).__name__))
        ray.get(self.room.put.remote((source, target), value))

    def recv(self, source: Any, target: Any) -> Any:
        ray.get(self.room.get.remote((source, target)))
        return ray.get(self.room.get.remote((source, target)))

    def close(self) -> None:
        ray.kill(self.room)


def run_all(actors: Sequence[Any], references: Sequence[Any]) -> list[Any]:
    """Results of all; when one fails the others are killed, and the first error in order is it."""
    _done, _left = ray.wait(list(references), num_returns=1)
    try:
        ray.get(_done)
    except ray.exceptions.RayError:
        for actor in actors:
            ray.kill(actor)
    return [ray.get(reference) for reference in references]
