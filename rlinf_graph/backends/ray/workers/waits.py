"""Who waits for whom, in words."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

Peer = tuple[str, int]
"""A worker group's name and a rank of it."""
SHOWN = 8
"""Waits that a report lists."""


@dataclass(frozen=True)
class Wait:
    """Somebody waits for somebody."""

    who: Peer
    on: tuple[Peer, ...]
    doing: str
    since: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        """Such as `a` rank 0 receives from `b` rank 1."""
        return f"{named(self.who)} {self.doing} {', '.join(named(peer) for peer in self.on)}"


def named(peer: Peer) -> str:
    """Such as `a` rank 0."""
    return f"`{peer[0]}` rank {peer[1]}"


def report(mine: Wait, waits: Iterable[Wait], open_groups: Collection[str]) -> str:
    """Why nothing comes: a group that is not there, a cycle of waits, or the waits that there are.

    A cycle is a deadlock when each of its ranks does nothing else at the same time.
    """
    known = list(waits)
    absent = {peer[0] for peer in mine.on} - set(open_groups)
    if absent:
        return f"{mine}, and there is no worker group `{min(absent)}`"
    cycle = _cycle(mine, known)
    if cycle:
        return "deadlock: " + "; ".join(str(wait) for wait in cycle)
    others = [wait for wait in known if wait is not mine][:SHOWN]
    told = "; ".join(f"{wait} for {time.monotonic() - wait.since:.1f} s" for wait in others)
    return f"{mine}; " + (f"other waits: {told}" if told else "nobody else waits")


def _cycle(start: Wait, waits: list[Wait]) -> list[Wait]:
    """A chain of waits that leads from `start` back to whoever waits there; empty without one."""
    paths, seen = [[start]], {start.who}
    while paths:
        path = paths.pop()
        for wait in waits:
            if wait.who not in path[-1].on:
                continue
            if start.who in wait.on:
                return [*path, wait]
            if wait.who not in seen:
                seen.add(wait.who)
                paths.append([*path, wait])
    return []
