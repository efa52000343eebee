"""Where sends meet receives: one actor that knows all worker groups of a driver.

It carries what is small and references of what is large. Both ends of a transfer, and all ranks of
a collective, describe what they expect; they learn together whether it fits. A rank that fails, or
whose process dies, ends waits for it with the first cause, whenever they begin; of one that fails
those in calls that were issued before a driver was told (`issued`, in seconds of its clock).
Answers are values, not exceptions, so that Ray logs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import RayError

from rlinf_graph.backends.ray.workers.errors import Failure, death_of, silence_of
from rlinf_graph.backends.ray.workers.matching import (
    Matching,
    Pair,
    Pending,
    Problem,
    Reach,
    Receipt,
    Wanted,
    answer_all,
)
from rlinf_graph.backends.ray.workers.payload import About, Envelope
from rlinf_graph.backends.ray.workers.turns import Turns
from rlinf_graph.backends.ray.workers.waits import Peer, Wait, report

DEATH_S = 5.0
"""How long a broken connection of a group waits for the death that explains it."""
PULSE_S = 5.0
"""Between an answer of a process and the next question whether it is there."""
PULSES_S = 200
"""Questions a second, at most, to the processes of a group."""


@dataclass(frozen=True)
class _Failed:
    """How a call ended at a rank."""

    failure: Failure
    issued: float


class _Group:
    """The ranks that have joined under a name.

    Attributes:
        failed: how the last call that failed ended, by rank.
        told: since when a driver knows that a call has failed that a rank was still in, by the
            rank and when it was issued.
    """

    def __init__(self, hosts: Sequence[Any], seats: Sequence[tuple[str, int]]) -> None:
        self.size, self.seats = len(hosts), list(seats)
        self.watches: list[asyncio.Task[None]] = []
        self.rounds: list[dict[int, Pending]] = []
        self.failed: dict[int, _Failed] = {}
        self.told: dict[tuple[int, float], float] = {}
        self.dead: dict[int, Failure] = {}
        self.silent: dict[int, Failure] = {}
        self.death = asyncio.Event()

    def lasting(self, rank: int | None = None) -> Iterator[Failure]:
        """Why a rank, or any, is not there."""
        for known in (self.dead, self.silent):
            yield from (failure for at, failure in known.items() if rank in (None, at))


class Exchange:
    """The meeting place. All methods are coroutines of one event loop."""

    def __init__(self) -> None:
        """No group has joined."""
        self._names: set[str] = set()
        self._closed: dict[str, tuple[float, Problem]] = {}
        self._groups: dict[str, _Group] = {}
        self._joined = asyncio.Condition()
        self._matching = Matching()
        self._turns: dict[tuple[Peer, str, Peer], Turns] = defaultdict(Turns)
        self._waits: dict[int, Wait] = {}
        self._seen: dict[str, float] = {}

    async def claim(self, name: str) -> bool:
        """Take a name for a group that is about to start; False when it is taken."""
        free = name not in self._names
        self._names.add(name)
        return free

    async def join(
        self, name: str, hosts: Sequence[Any], seats: Sequence[tuple[str, int]], silence: float
    ) -> None:
        """Take a group in, whose name it has claimed, and watch its processes.

        `seats` are their machines' addresses and their ids; one that does not answer for `silence`
        seconds ends every wait for it.
        """
        group = self._groups[name] = _Group(hosts, seats)
        for rank, host in enumerate(hosts):
            for watch in (self._watch(name, rank, host), self._listen(name, rank, host, silence)):
                group.watches.append(asyncio.get_running_loop().create_task(watch))
        async with self._joined:
            self._joined.notify_all()

    async def leave(self, name: str, now: float) -> None:
        """Forget a group; who waits for it gets its first failure, or that it was closed.

        So do those that come later, in calls issued before, until there is such a group again.
        """
        self._names.discard(name)
        group = self._groups.pop(name, None)
        if group is None:
            return
        for watch in group.watches:
            watch.cancel()
        known = [*group.lasting(), *(one.failure for one in group.failed.values())]
        problem = Problem("closed", f"worker group `{name}` was closed")
        if known:
            problem = Problem("failure", failure=known[0].first)
        self._closed[name] = (now, problem)
        for rank in range(group.size):
            self._spread(group, problem, Reach((name, rank)))
        for key in [key for key in self._turns if key[0][0] == name]:
            del self._turns[key]

    async def size(self, name: str, timeout: float) -> int | Problem:
        """How many ranks a group has; waits until it has joined."""
        try:
            async with asyncio.timeout(timeout), self._joined:
                await self._joined.wait_for(lambda: name in self._groups)
        except TimeoutError:
            return Problem("timeout", f"no worker group `{name}` within {timeout:g} s")
        return self._groups[name].size

    async def silent(self, name: str, ranks: Sequence[int]) -> Failure | None:
        """Of the first of these ranks that does not answer."""
        known = self._groups[name].silent if name in self._groups else {}
        return next((known[rank] for rank in ranks if rank in known), None)

    async def seen(
        self, numbers: Sequence[str], late: Sequence[Peer], issued: float, now: float
    ) -> None:
        """A driver has been told of failures, and that a call has failed that `late` ranks are
        still in: calls that it issues from now on are not troubled by that."""
        for number in numbers:
            self._seen.setdefault(number, now)
        for name, rank in late:
            if name in self._groups:  # told with a clock of its own, but after it was issued
                self._groups[name].told.setdefault((rank, issued), max(now, issued))

    async def fail(self, peer: Peer, failure: Failure, issued: float) -> Failure:
        """A rank's method raised: end waits for it. What is behind it, if it is known here."""
        name, rank = peer
        group = self._groups.get(name)
        if group is not None and failure.broken_link:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEATH_S if not group.silent else 0):
                    await group.death.wait()
            failure = replace(failure, origin=next(group.lasting(), None))
        if group is None or self._groups.get(name) is not group:
            return failure
        failed, before = _Failed(failure, issued), group.failed.get(rank)
        until = self._told(group, rank, failed)
        if before is None or until >= self._told(group, rank, before):
            group.failed[rank] = failed
        problem = Problem("failure", failure=failure.first)
        self._spread(group, problem, Reach(peer, issued, until))
        return failure

    async def send(
        self, source: Peer, target: Peer, tag: int | str | None, envelope: Envelope,
        number: int, issued: float, timeout: float,
    ) -> Problem | None:  # fmt: skip
        """Offer a value; answered when the receiver has it. `number` counts the pair's sends."""
        wait = Wait(source, (target,), f"sends {envelope.about} to")
        mine = Pending(wait, envelope, issued, tag)
        if left := self._left(source):
            return left
        async with self._turns[source, "send", target].of(number):
            refused = self._refusal(target, issued)
            if refused is None:
                self._matching.offer((source, target), mine)
        return refused or await self._matched((source, target), mine, timeout)

    async def receive(
        self, target: Peer, source: Peer, wanted: Wanted, number: int, issued: float,
        timeout: float,
    ) -> Receipt | Problem:  # fmt: skip
        """Wait for the next value from a rank. `number` counts the pair's receives."""
        mine = Pending(Wait(target, (source,), "receives from"), wanted, issued)
        if left := self._left(target):
            return left
        async with self._turns[target, "receive", source].of(number):
            refused = self._refusal(source, issued)
            if refused is None:
                self._matching.want((source, target), mine)
        return refused or await self._matched((source, target), mine, timeout)

    async def taken(self, number: int) -> None:
        """A receiver has fetched what it was referred to."""
        self._matching.fetched(number)

    async def meet(
        self,
        peer: Peer,
        what: str,
        same: About | None,
        envelope: Envelope,
        issued: float,
        timeout: float,
    ) -> list[Envelope] | Problem:
        """Wait for all ranks of the group; what each has brought, in the order of ranks.

        All have to say the same `what` and `same`: the operation, and what it works on.
        """
        group = self._groups[peer[0]]
        failed = self._known(group, None, issued)
        if failed is not None:
            return failed
        arrived = next((r for r in group.rounds if peer[1] not in r), None)
        if arrived is None:
            arrived = {}
            group.rounds.append(arrived)
        others = tuple((peer[0], rank) for rank in range(group.size) if rank not in arrived)
        wait = Wait(peer, tuple(o for o in others if o != peer), f"is in `{what}` with")
        arrived[peer[1]] = mine = Pending(wait, (what, same, envelope), issued)
        if len(arrived) == group.size:
            group.rounds.remove(arrived)
            _settle(arrived)
        answer = await self._answer(mine, timeout)
        if isinstance(answer, Problem) and arrived in group.rounds:
            group.rounds.remove(arrived)
            missing = ", ".join(str(r) for r in range(group.size) if r not in arrived)
            text = f"{answer.text}; of `{peer[0]}`, rank {missing} did not come to `{what}`"
            answer = Problem(answer.kind, text, answer.failure)
            answer_all(arrived.values(), answer)
        return answer

    async def _matched(self, pair: Pair, mine: Pending, timeout: float) -> Any:
        """Wait until the other end has come, and leave the queue in any case."""
        try:
            return await self._answer(mine, timeout)
        finally:
            self._matching.remove(pair, mine)

    async def _answer(self, mine: Pending, timeout: float) -> Any:
        """Wait for an answer; after `timeout` seconds it is a report of who waits for whom."""
        self._waits[id(mine)] = mine.wait
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(mine.answer)
        except TimeoutError:
            if mine.answer.done():  # it came at the last moment, and the other end knows
                return mine.answer.result()
            told = report(mine.wait, self._waits.values(), self._groups.keys())
            told += "".join(f"; {text}" for text in self._failed_before(mine.wait.on))
            return Problem("timeout", f"nothing within {timeout:g} s: {told}")
        finally:
            del self._waits[id(mine)]

    def _left(self, caller: Peer) -> Problem | None:
        """For a call of a closed group: it may not count among those of a later one."""
        text = f"worker group `{caller[0]}` was closed"
        return None if caller[0] in self._groups else Problem("closed", text)

    def _refusal(self, peer: Peer, issued: float) -> Problem | None:
        """Why there is no point in waiting for a rank."""
        group = self._groups.get(peer[0])
        if group is None:
            closed, problem = self._closed.get(peer[0], (-math.inf, None))
            return problem if issued <= closed else None
        if not 0 <= peer[1] < group.size:
            return Problem("mismatch", f"`{peer[0]}` has {group.size} ranks: no rank {peer[1]}")
        return self._known(group, peer[1], issued)

    def _known(self, group: _Group, rank: int | None, issued: float) -> Problem | None:
        """A failure that counts for a call: one that lasts, or that no driver knew by then."""
        for failure in group.lasting(rank):
            return Problem("failure", failure=failure)
        for at, failed in group.failed.items():
            if rank in (None, at) and issued <= self._told(group, at, failed):
                return Problem("failure", failure=failed.failure.first)
        return None

    def _failed_before(self, peers: Sequence[Peer]) -> Iterator[str]:
        """What a driver knows already of ranks for which somebody waits in vain."""
        for name, rank in peers:
            group = self._groups.get(name)
            if group is not None and (failed := group.failed.get(rank)) is not None:
                yield f"before that, {failed.failure.first.render()}"

    def _told(self, group: _Group, rank: int, failed: _Failed) -> float:
        """Since when a driver knows of a failure: of it, of the call, or of the first cause if the
        call had been issued by then."""
        first = self._seen.get(failed.failure.first.number, math.inf)
        return min(
            self._seen.get(failed.failure.number, math.inf),
            group.told.get((rank, failed.issued), math.inf),
            first if failed.issued <= first else math.inf,
        )

    async def _watch(self, name: str, rank: int, host: Any) -> None:
        try:
            await host.alive.remote()
        except Exception as error:  # whatever Ray has to say about the end of a process
            group = self._groups[name]
            group.dead[rank] = death_of(error, name, rank, group.seats[rank][0])
            group.death.set()
            problem = Problem("failure", failure=group.dead[rank])
            self._spread(group, problem, Reach((name, rank)))

    async def _listen(self, name: str, rank: int, host: Any, silence: float) -> None:
        group = self._groups[name]
        with contextlib.suppress(RayError):  # a process that died: `_watch` tells
            while True:
                answer = asyncio.ensure_future(_answer_of(host.pulse.remote()))
                try:
                    if not (await asyncio.wait([answer], timeout=silence))[0]:
                        group.silent[rank] = silence_of(name, rank, group.seats[rank], silence)
                        problem = Problem("failure", failure=group.silent[rank])
                        self._spread(group, problem, Reach((name, rank)))
                    await answer
                finally:
                    answer.cancel()
                group.silent.pop(rank, None)
                await asyncio.sleep(max(PULSE_S, group.size / PULSES_S))

    def _spread(self, group: _Group, problem: Problem, reach: Reach) -> None:
        """Tell who waits for a rank; the group's collectives end, so that it is in step again."""
        self._matching.end(problem, reach)
        for arrived in list(group.rounds):
            if any(one in reach for one in arrived.values()):
                answer_all(arrived.values(), problem)
                group.rounds.remove(arrived)


async def _answer_of(reference: Any) -> None:
    await reference


def _settle(arrived: dict[int, Pending]) -> None:
    """All ranks are there: hand out what they brought, if they agree on what this is."""
    whats = {rank: pending.what[:2] for rank, pending in sorted(arrived.items())}
    if len(set(whats.values())) > 1:
        told = "; ".join(f"rank {r}: {w} {a or ''}".rstrip() for r, (w, a) in whats.items())
        answer_all(arrived.values(), Problem("mismatch", f"the ranks do not agree: {told}"))
        return
    brought = [arrived[rank].what[2] for rank in sorted(arrived)]
    answer_all(arrived.values(), brought)
