"""Plays scenarios of the channel's stress test, and looks for what they leave behind."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import ray
from ray._private import state
from ray.exceptions import GetTimeoutError, RayActorError

from rlinf_graph.backends.ray.channel.channel import Channel
from rlinf_graph.backends.ray.channel.errors import ChannelError
from tests.backends.ray.channel_model import Log, Model
from tests.backends.ray.channel_party import Event, Process, collect, late, raised
from tests.backends.ray.channel_scenario import KEYS, Scenario

HANG_S = 100
"""Seconds after which a scenario hangs, or what it has left behind stays: many times what it
takes, also on a machine that does much else."""

KNOWN_S = 10
"""Seconds within which everybody knows of a death."""


def until(
    holds: Callable[[], Any], told: Callable[[], Any], tidy: Callable[[], Any] = lambda: None
) -> None:
    """Wait for something that has to come; `tidy` between two looks."""
    deadline = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {HANG_S} seconds: {told()}"
        tidy()
        time.sleep(0.01)  # between looks, not instead of one


def alive(process: int) -> bool:
    """Whether a process runs."""
    return os.path.exists(f"/proc/{process}")


def shared(process: int) -> list[str]:
    """The shared memory of channels that a process has open or mapped."""
    try:
        with open(f"/proc/{process}/maps", encoding="utf-8") as maps:
            found = [line.strip() for line in maps if "memfd:channel" in line]
        places = [f"/proc/{process}/fd/{name}" for name in os.listdir(f"/proc/{process}/fd")]
        return found + [place for place in places if "memfd:channel" in _target(place)]
    except FileNotFoundError:
        return []


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


class Crew:
    """Processes that play one scenario after the other. One that was killed is replaced."""

    def __init__(self, size: int = 3) -> None:
        """Start them."""
        self._handles = [self._hire() for _ in range(size)]
        self._processes: list[int] = ray.get([h.process.remote() for h in self._handles])

    @staticmethod
    def _hire() -> Any:
        return ray.remote(Process).options(num_cpus=0, max_concurrency=4).remote()

    def dismiss(self) -> None:
        """End the processes."""
        for handle in self._handles:
            ray.kill(handle)

    def play(self, scenario: Scenario) -> None:
        """A scenario to its end, and that nothing of it is left.

        Raises:
            AssertionError: with all faults and the scenario.
        """
        try:
            broker = Scene(scenario, self._handles, self._processes).play()
            collect()
            until(lambda: not alive(broker), lambda: f"the broker, process {broker}, to end")
            until(lambda: not any(map(shared, self._processes)), self._memory)
        except BaseException as error:
            error.add_note(f"{scenario}")
            self.dismiss()
            self.__init__(len(self._handles))
            raise
        if scenario.ending in ("killed", "departed"):
            self._handles[scenario.victim] = self._hire()
            process = self._handles[scenario.victim].process.remote()
            self._processes[scenario.victim] = ray.get(process)

    def _memory(self) -> str:
        return f"to give memory back: { {p: shared(p) for p in self._processes} }"


class Scene:
    """One scenario being played."""

    def __init__(self, scenario: Scenario, handles: list[Any], processes: list[int]) -> None:
        """A channel of its own."""
        self._scenario, self._handles, self._processes = scenario, handles, processes
        self._name = f"stress-{uuid.uuid4().hex[:8]}" if scenario.named else ""
        self._channel = Channel.create(self._name, **scenario.options)
        self._culprit = re.compile(rf"PeerFailed: .*process {processes[scenario.victim]}\b", re.S)
        self._died = float("inf")
        self._faults: list[str] = []
        self._log: Log = {}

    def play(self) -> int:
        """All of it; the broker's process, which has to end when nobody refers to this any more.

        Raises:
            AssertionError: with all faults.
        """
        broker = state.actors(self._channel._broker._actor_id.hex())["Pid"]
        cast = zip(self._handles, self._scenario.processes, self._scenario.leaves, strict=True)
        played = [h.play.remote(self._channel, parties, leaves) for h, parties, leaves in cast]
        if self._scenario.ending == "departed":
            ray.wait([played[self._scenario.victim]], timeout=HANG_S)
            os.kill(self._processes[self._scenario.victim], 9)
        self._follow(played)
        if not self._faults:
            self._faults += Model(self._scenario, self._log).faults
            self._faults += [str(e) for es in self._log.values() for e in es if self._wrong(e)]
        if not self._faults and self._scenario.ending in ("killed", "failed"):
            self._everybody_knows()
        elif not self._faults:
            self._is_over()
        assert not self._faults, "\n".join(self._faults)
        return broker

    def _follow(self, played: list[Any]) -> None:
        """Collect the logs; look at the channel meanwhile."""
        waiting, deadline = list(played), time.monotonic() + HANG_S
        while waiting and not self._faults:
            done, waiting = ray.wait(waiting, timeout=0.1)
            for future in done:
                try:
                    for number, events in ray.get(future):
                        self._log[number] = events
                except RayActorError as error:
                    victim = played.index(future) == self._scenario.victim
                    if not victim or self._scenario.ending != "killed":
                        self._faults.append(f"a process died: {error}")
                    self._died = time.monotonic()
            if waiting and time.monotonic() > deadline:
                self._faults.append(self._hang([played.index(future) for future in waiting]))
            self._look()

    def _look(self) -> None:
        capacity = self._scenario.options["capacity"] or float("inf")
        nbytes = self._scenario.options["capacity_bytes"] or float("inf")
        for key, lane in self._channel.statistics().keys.items():
            if lane.most > capacity or lane.nbytes > nbytes:
                self._faults.append(f"too much under {key!r}: {lane}")

    def _hang(self, places: list[int]) -> str:
        told = [f"hangs: {self._channel.statistics()}"]
        for place in places:
            try:
                told.append(ray.get(self._handles[place].stacks.remote(), timeout=5))
            except GetTimeoutError:
                told.append(f"no word from process {place}")
        return "\n".join(told)

    def _wrong(self, event: Event) -> bool:
        """Whether an event is an error that the scenario does not explain."""
        if event.what != "error":
            return False
        slow = event.end > self._died + KNOWN_S
        blamed = self._culprit.search(event.told) is not None
        return slow or not blamed or self._scenario.ending in ("clean", "departed")

    def _everybody_knows(self) -> None:
        """Who failed is raised at all who live, as soon as the broker knows. Until then a stream
        may end: all producers have closed, and the last item is taken."""
        started = time.monotonic()
        until(
            lambda: self._culprit.search(raised(lambda: late(self._channel))),
            self._channel.statistics,
        )
        if time.monotonic() > started + KNOWN_S:
            self._faults.append(f"known after {time.monotonic() - started:.1f} s")
        survivors = [
            handle
            for place, handle in enumerate(self._handles)
            if place != self._scenario.victim or self._scenario.ending == "failed"
        ]
        told = ray.get([s.probe.remote(self._channel) for s in survivors], timeout=HANG_S)
        mine = [raised(lambda: self._channel.get(timeout=10)), raised(lambda: late(self._channel))]
        every = [text for one in [*told, mine] for text in one]
        self._faults += [f"a probe: {text}" for text in every if not self._culprit.search(text)]

    def _tidy(self) -> None:
        """Collect the garbage of all that live. An error that ended an awaited call is in a cycle
        with its task and the frames that hold the channel, and Ray's thread may still have it in
        hand when the process collects at the end of its part."""
        dead = self._scenario.victim if self._scenario.ending == "departed" else None
        living = [handle for place, handle in enumerate(self._handles) if place != dead]
        ray.get([handle.tidy.remote() for handle in living], timeout=HANG_S)

    def _is_over(self) -> None:
        """The stream has ended, everything is counted, and only this process uses the channel."""
        channel = self._channel
        ends = [
            raised(lambda key=key: channel.get(KEYS[key], timeout=10))
            for key in self._scenario.keys
        ]
        self._faults += [f"no end: {text}" for text in ends if "EndOfStream" not in text]
        if "Closed" not in (text := raised(lambda: late(channel))):
            self._faults.append(f"a late put: {text}")
        until(lambda: len(channel.statistics().peers) == 1, channel.statistics, self._tidy)
        puts = [e.key for es in self._log.values() for e in es if e.what == "put"]
        for key in self._scenario.keys:
            lane, count = channel.statistics().keys[KEYS[key]], puts.count(key)
            there = lane.queued, lane.nbytes, lane.weight, lane.waiting_gets, lane.waiting_puts
            if (lane.put, lane.got) != (count, count) or any(there):
                self._faults.append(f"{count} were put under {KEYS[key]!r}: {lane}")
        if self._name:
            try:
                Channel.connect(self._name)
                self._faults.append("the name is still taken")
            except ChannelError:
                return
