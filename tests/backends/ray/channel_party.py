"""The processes of the channel's stress test: threads that follow a script and keep a log."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import numpy as np
import torch

from rlinf_graph.backends.ray.channel import carry
from rlinf_graph.backends.ray.channel.channel import Channel
from rlinf_graph.backends.ray.channel.errors import (
    ChannelError,
    Empty,
    EndOfStream,
    Full,
    Stuck,
    TimedOut,
    TooLarge,
)
from tests.backends.ray.channel_scenario import (
    KEYS,
    Close,
    Die,
    Drain,
    Fail,
    Flush,
    Get,
    Party,
    Pause,
    Put,
    Step,
)

TIMEOUT_S = 0.02
"""Of calls that wait a little."""

KEPT = 3
"""Items that a consumer holds while it takes others."""

NOTHING = object()
END = object()


class Event(NamedTuple):
    """What a call has done: `what` is put, got, batch, known (flush or close) or error. Items are
    `(party, number)`. Seconds are of the machine's monotonic clock."""

    what: str
    key: int
    items: tuple[tuple[int, int], ...]
    start: float
    end: float
    told: str = ""
    weight: float = 0.0
    priority: int = 0
    nbytes: int = 0


def make_item(party: int, number: int, kind: str, nbytes: int) -> Any:
    """An item that says whose it is, and whose data can be checked."""
    if kind == "plain":
        return ("plain", party, number, "x" * nbytes)
    if kind == "bytes":
        return bytes([party]) + number.to_bytes(3, "big") + bytes([number % 251]) * nbytes
    values = np.full(2 + nbytes // 8, number, np.int64)
    values[0] = party
    if kind == "array":
        return values
    if kind == "tensor":
        return torch.from_numpy(values)
    return {
        "array": values[: 2 + len(values) // 2],
        "rest": torch.from_numpy(values[2:]),
        "to": party,
    }


def spoil(item: Any) -> None:
    """Write over an item's arrays: it belongs to who calls this."""
    for part in item.values() if isinstance(item, dict) else (item,):
        if isinstance(part, np.ndarray | torch.Tensor):
            part[...] = -1


def read_item(item: Any) -> tuple[int, int]:
    """Whose an item is, and its number there.

    Raises:
        ValueError: where its data are not those that were put.
    """
    if isinstance(item, tuple):
        _kind, party, number, rest = item
        good = rest == "x" * len(rest)
    elif isinstance(item, bytes):
        party, number = item[0], int.from_bytes(item[1:4], "big")
        good = item[4:] == bytes([number % 251]) * (len(item) - 4)
    elif isinstance(item, dict):
        party, number = int(item["array"][0]), int(item["array"][-1])
        good = bool((item["array"][1:] == number).all() and (item["rest"] == number).all())
        good = good and item["to"] == party
    else:
        party, number = int(item[0]), int(item[1])
        good = bool((item[1:] == number).all())
    if not good:
        raise ValueError(f"item {number} of party {party} has the data of another")
    return party, number


def collect() -> None:
    """Collect all garbage. `gc.collect` does nothing while another thread collects, and what
    `asyncio.Runner` raises is in a cycle that holds the channel."""
    done: list[int] = []

    def note(phase: str, told: dict[str, int]) -> None:
        if phase == "stop" and told["generation"] == 2:
            done.append(threading.get_ident())

    gc.callbacks.append(note)
    try:
        while threading.get_ident() not in done:
            gc.collect()
            time.sleep(0)  # the other one goes on
    finally:
        gc.callbacks.remove(note)


class Actor:
    """One party at work."""

    def __init__(self, party: Party, channel: Channel, runner: asyncio.Runner) -> None:
        """Nothing is done."""
        self._party, self._channel, self._runner = party.number, channel, runner
        self.log: list[Event] = []
        self.doing = "nothing"
        self._number = 1
        self._kept: deque[tuple[Any, tuple[int, int]]] = deque()

    def follow(self, steps: tuple[Step, ...]) -> None:
        """All steps, or up to the first error."""
        try:
            for step in steps:
                self.doing = str(step)
                self._do(step)
            while self._kept:
                self._forget()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            if not isinstance(error, ChannelError):
                told = traceback.format_exc()
            self._note("error", 0, (), time.monotonic(), told=told)
        self.doing = "done"
        self._kept.clear()

    def _do(self, step: Step) -> None:
        match step:
            case Put():
                for place in range(step.count):
                    self._put(step, place)
            case Get():
                self._get(step)
            case Drain():
                while not any(self._get(get) for get in step.steps):
                    pass
            case Flush() | Close():
                start = time.monotonic()
                self._channel.flush() if isinstance(step, Flush) else self._channel.close()
                self._note("known", 0, (), start)
            case Pause():
                time.sleep(step.seconds)  # part of the scenario: what is idle goes back
            case Die():
                os.kill(os.getpid(), signal.SIGKILL)
            case Fail():
                self._channel.fail(ValueError("as the scenario says"))

    def _put(self, step: Put, place: int) -> None:
        item = make_item(self._party, self._number, step.kind, step.nbytes)
        weight = step.weights[place % len(step.weights)]
        priority = step.priorities[place % len(step.priorities)]
        options: Any = {"weight": weight, "priority": priority}
        put, key = self._channel.put, KEYS[step.key]
        nbytes, start = carry.encode(item).nbytes, time.monotonic()
        try:
            match step.how:
                case "put":
                    put(item, key, **options)
                case "nowait":
                    self._channel.put_nowait(item, key, **options)
                case "timeout":
                    put(item, key, timeout=TIMEOUT_S, **options)
                case "await":
                    self._runner.run(self._channel.aput(item, key, **options))
                case _:
                    self._cut(self._channel.aput(item, key, **options), step.delay)
        except (Full, TimedOut, asyncio.CancelledError):
            return
        except TooLarge:
            self._note("too large", step.key, (), start, nbytes=nbytes)
            return
        finally:
            spoil(item)
        whose = ((self._party, self._number),)
        self._note("put", step.key, whose, start, "", weight, priority, nbytes)
        self._number += 1

    def _get(self, step: Get) -> bool:
        """Whether the stream has ended."""
        try:
            iterator = iter(self._channel)
            for _ in range(step.count):
                start = time.monotonic()
                found = self._take(step, iterator)
                if found is END:
                    return True
                if found is NOTHING:
                    continue
                batch = found if step.target is not None else [found]
                whose = tuple(read_item(item) for item in batch)
                what = "got" if step.target is None else "batch"
                self._note(what, step.key, whose, start, weight=step.target or 0.0)
                for item, owner in zip(batch, whose, strict=True):
                    self._keep(item, owner)
        except EndOfStream:
            return True
        return False

    def _take(self, step: Get, iterator: Any) -> Any:
        """An item or a batch; nothing, or the end."""
        if step.how == "iterate":
            return next(iterator, END)
        channel, key = self._channel, KEYS[step.key]
        call: Any = channel.get if step.target is None else channel.get_batch
        later: Any = channel.aget if step.target is None else channel.aget_batch
        what = (key,) if step.target is None else (step.target, key)
        try:
            match step.how:
                case "get":
                    return call(*what)
                case "nowait":
                    return call(*what, timeout=0)
                case "timeout":
                    return call(*what, timeout=TIMEOUT_S)
                case "await":
                    return self._runner.run(later(*what))
                case _:
                    return self._cut(later(*what), step.delay)
        except Stuck:
            return self._unstick(key)
        except (Empty, TimedOut, asyncio.CancelledError):
            return NOTHING

    def _unstick(self, key: Any) -> Any:
        """A batch of the one item that there must be, for a batch that cannot be."""
        try:
            start = time.monotonic()
            item = self._channel.get(key, timeout=TIMEOUT_S)
        except TimedOut:
            return NOTHING
        whose = read_item(item)
        self._note("got", KEYS.index(key), (whose,), start)
        self._keep(item, whose)
        return NOTHING

    def _cut(self, call: Coroutine[Any, Any, Any], delay: float) -> Any:
        async def race() -> Any:
            task = asyncio.ensure_future(call)
            await asyncio.wait([task], timeout=delay)
            task.cancel()
            return await task

        return self._runner.run(race())

    def _keep(self, item: Any, whose: tuple[int, int]) -> None:
        self._kept.append((item, whose))
        if len(self._kept) > KEPT:
            self._forget()

    def _forget(self) -> None:
        """An item has still the data with which it came; then write over it."""
        item, whose = self._kept.popleft()
        if read_item(item) != whose:
            raise ValueError(f"item {whose} became {read_item(item)} while it was held")
        spoil(item)

    def _note(self, what: str, key: int, items: Any, start: float, *more: Any, **rest: Any) -> None:
        self.log.append(Event(what, key, items, start, time.monotonic(), *more, **rest))


def late(channel: Channel) -> None:
    """A put that is at the broker when this returns."""
    channel.put(0, timeout=10)
    channel.flush()


def raised(call: Callable[[], Any]) -> str:
    """The first error of a call that may still find what has been given ahead."""
    try:
        for _ in range(10_000):
            call()
    except ChannelError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Process:
    """A process, made an actor by the test; it serves one scenario after the other."""

    def __init__(self) -> None:
        """No party."""
        self._actors: list[Actor] = []

    def process(self) -> int:
        """Its id."""
        return os.getpid()

    def play(self, channel: Channel, parties: tuple[Party, ...], leaves: bool) -> list[Any]:
        """The numbers and the logs of the parties."""

        def work(party: Party, mine: Channel) -> None:
            with asyncio.Runner() as runner:
                actor = Actor(party, mine, runner)
                self._actors.append(actor)
                actor.follow(party.steps)

        self._actors = []
        threads = [threading.Thread(target=work, args=(p, copy.copy(channel))) for p in parties]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if leaves:
            channel.leave()
        logs = [(actor._party, actor.log) for actor in self._actors]
        self._actors = []
        collect()
        return logs

    def tidy(self) -> None:
        """Collect all garbage."""
        collect()

    def probe(self, channel: Channel) -> list[str]:
        """What the channel raises at this process now, at a consumer and at a producer."""
        told = [raised(lambda: channel.get(timeout=10)), raised(lambda: late(channel))]
        collect()
        return told

    def stacks(self) -> str:
        """Where every thread is."""
        doing = [f"party {actor._party}: {actor.doing}" for actor in self._actors]
        frames = ["".join(traceback.format_stack(f)[-6:]) for f in sys._current_frames().values()]
        return "\n".join([*doing, *frames])
