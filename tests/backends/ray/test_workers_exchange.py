"""Whom a failure ends, and whom not: the exchange alone, with times that are made up.

Of processes it needs only that they answer; here they are coroutines.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from rlinf_graph.backends.ray.workers import exchange as exchanges
from rlinf_graph.backends.ray.workers.errors import Failure
from rlinf_graph.backends.ray.workers.exchange import Exchange
from rlinf_graph.backends.ray.workers.matching import Problem, Receipt, Wanted
from rlinf_graph.backends.ray.workers.payload import About, Envelope, seal

HANGS_S = 20.0
SOON_S = 0.05
"""Enough for the exchange to answer, which waits for nobody here; more would prove no more."""
P, Q, R = ("p", 0), ("q", 0), ("r", 0)
LARGE = Envelope(About("bytes"), None, [object()])


class Remote:
    def __init__(self, call: Callable[[], Any]) -> None:
        self.remote = call


class Host:
    def __init__(self) -> None:
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.alive, self.pulse = Remote(lambda: self.end), Remote(self._answer)

    async def _answer(self) -> None: ...


class Stage:
    """Three groups of two ranks; calls are known by when they were issued."""

    def __init__(self) -> None:
        self.exchange = Exchange()
        self.hosts: dict[str, list[Host]] = {}
        self._numbers: dict[Any, int] = {}

    async def launch(self, name: str) -> None:
        self.hosts[name] = [Host(), Host()]
        assert await self.exchange.claim(name)
        await self.exchange.join(name, self.hosts[name], [("h", 1)] * 2, HANGS_S)

    def receive(self, at: tuple[str, int], source: tuple[str, int], issued: float) -> Any:
        number = self._next("receive", at, source)
        asked = self.exchange.receive(at, source, Wanted(), number, issued, HANGS_S)
        return asyncio.ensure_future(asked)

    def send(self, at: tuple[str, int], to: tuple[str, int], issued: float, what: Any) -> Any:
        number = self._next("send", at, to)
        asked = self.exchange.send(at, to, None, what, number, issued, HANGS_S)
        return asyncio.ensure_future(asked)

    def meet(self, at: tuple[str, int], issued: float) -> Any:
        asked = self.exchange.meet(at, "barrier", None, seal(None), issued, HANGS_S)
        return asyncio.ensure_future(asked)

    async def dies(self, peer: tuple[str, int]) -> Failure:
        await asyncio.sleep(0)
        error = ActorDiedError()
        error.actor_id = f"actor of {peer}"
        self.hosts[peer[0]][peer[1]].end.set_exception(error)
        told = await self.receive(R, peer, 0)
        return told.failure

    async def fails(
        self, peer: tuple[str, int], issued: float, behind: Failure | None = None, **about: Any
    ) -> Failure:
        failure = Failure(*peer, "h", "m", "ValueError", "x", origin=behind, **about)
        return await self.exchange.fail(peer, failure, issued)

    async def told(
        self, failure: Failure, now: float, *peers: tuple[str, int], issued: float = 0
    ) -> None:
        """A handle has raised for a failure, with those ranks still in the call."""
        await self.exchange.seen([failure.number], peers, issued, now)

    def _next(self, *what: Any) -> int:
        self._numbers[what] = self._numbers.get(what, -1) + 1
        return self._numbers[what]


async def ended(wait: Any) -> Failure:
    answer = await asyncio.wait_for(wait, HANGS_S)
    assert isinstance(answer, Problem)
    assert answer.failure is not None
    return answer.failure


async def goes_on(*waits: Any) -> bool:
    done, _ = await asyncio.wait(waits, timeout=SOON_S)
    for wait in waits:
        wait.cancel()
    return not done


Scene = Callable[[Stage], Coroutine[Any, Any, None]]


async def a_failure_ends_waits_until_a_driver_is_told(stage: Stage) -> None:
    before = stage.receive(R, Q, 10)
    failure = await stage.fails(Q, 10)
    assert await ended(before) == failure
    assert await ended(stage.receive(R, Q, 19)) == failure
    await stage.told(failure, 20, Q, issued=10)
    assert await ended(stage.receive(R, Q, 19)) == failure
    assert await goes_on(stage.receive(R, Q, 21))


async def a_rank_that_fails_late_ends_no_newer_wait(stage: Stage) -> None:
    """Its call has failed at rank 0, and nobody waits for rank 1."""
    await stage.told(await stage.fails(Q, 10), 20, Q, ("q", 1), issued=10)
    newer = stage.receive(R, ("q", 1), 21), stage.meet(Q, 21)
    older = stage.receive(("r", 1), ("q", 1), 19)
    await asyncio.sleep(0)
    failure = await stage.fails(("q", 1), 10)
    assert await ended(older) == failure
    assert await goes_on(*newer)


async def so_it_is_when_it_fails_for_another(stage: Stage) -> None:
    await stage.told(await stage.fails(Q, 10), 20, Q, ("q", 1), issued=10)
    newer = stage.receive(R, ("q", 1), 21)
    await asyncio.sleep(0)
    await stage.fails(("q", 1), 10, behind=await stage.fails(P, 11))
    assert await goes_on(newer)


async def so_it_is_when_it_waits_for_a_death_meanwhile(stage: Stage) -> None:
    broken = asyncio.ensure_future(stage.fails(("q", 1), 10, broken_link=True))
    await asyncio.sleep(0)
    await stage.told(await stage.fails(Q, 10), 20, Q, ("q", 1), issued=10)
    newer = stage.receive(R, ("q", 1), 21)
    await broken
    assert await goes_on(newer)


async def another_call_of_the_rank_is_another_failure(stage: Stage) -> None:
    """The one that has been given up was issued later, or before."""
    for given_up, other in ((100, 90), (110, 115)):
        await stage.told(await stage.fails(Q, given_up), 120, Q, ("q", 1), issued=given_up)
        waiting = stage.receive(R, ("q", 1), 121)
        await asyncio.sleep(0)
        failure = await stage.fails(("q", 1), other)
        assert await ended(waiting) == failure
        await stage.told(failure, 119, ("q", 1), issued=other)


async def two_calls_can_be_given_up(stage: Stage) -> None:
    for call in (100, 80):
        await stage.told(await stage.fails(Q, call), 120, Q, ("q", 1), issued=call)
    newer = stage.receive(R, ("q", 1), 121)
    await asyncio.sleep(0)
    await stage.fails(("q", 1), 100)
    assert await goes_on(newer)


async def what_a_death_leads_to_later_is_news(stage: Stage) -> None:
    """In a call that was issued when the death was known already."""
    await stage.told(await stage.dies(P), 20)
    waiting, own = stage.receive(R, Q, 30), stage.receive(Q, R, 30)
    death = await ended(stage.receive(Q, P, 30))
    await stage.fails(Q, 30, behind=death)
    assert await ended(waiting) == death
    assert await ended(own) == death


async def what_it_led_to_before_is_not(stage: Stage) -> None:
    """Also when the driver hears of the death again."""
    death = await stage.dies(P)
    await stage.told(death, 20)
    waiting = stage.receive(R, Q, 30)
    await stage.told(death, 40)
    await stage.fails(Q, 5, behind=death)
    assert await goes_on(waiting)


async def what_the_failed_call_itself_waits_for_ends(stage: Stage) -> None:
    """It has begun to receive, and would take what is sent to a later call."""
    await stage.told(await stage.fails(("q", 1), 10), 5, Q, issued=10)
    stale = stage.receive(Q, R, 10)
    await asyncio.sleep(0)
    failure = await stage.fails(Q, 10)
    assert await ended(stale) == failure
    newer, sent = stage.receive(Q, R, 21), stage.send(R, Q, 21, seal("new"))
    assert await sent is None
    receipt = await newer
    assert isinstance(receipt, Receipt)
    assert receipt.envelope.open() == "new"


async def what_it_has_been_given_and_did_not_fetch_is_not_sent(stage: Stage) -> None:
    await stage.told(await stage.fails(("q", 1), 10), 20, Q, issued=10)
    given, sent = stage.receive(Q, R, 10), stage.send(R, Q, 30, LARGE)
    assert isinstance(await given, Receipt)
    failure = await stage.fails(Q, 10)
    assert await ended(sent) == failure


async def a_failure_that_is_known_hides_none_that_is_not(stage: Stage) -> None:
    news = await stage.fails(Q, 10)
    await stage.told(await stage.fails(("q", 1), 11), 20, Q, issued=11)
    await stage.fails(Q, 11)
    assert await ended(stage.receive(R, Q, 21)) == news


async def what_was_told_later_counts_longer(stage: Stage) -> None:
    """A rank with two calls at once: the one that was told first ends last."""
    await stage.told(await stage.fails(Q, 5), 20, ("q", 1), issued=5)
    second = await stage.fails(("q", 1), 10)
    await stage.told(second, 50)
    await stage.fails(("q", 1), 5)
    assert await ended(stage.receive(R, ("q", 1), 30)) == second


async def what_waits_in_no_call_ends(stage: Stage) -> None:
    """In a thread of its own, which nobody issued."""
    await stage.told(await stage.fails(Q, 10), 20, ("q", 1), issued=10)
    waiting = stage.receive(R, ("q", 1), math.inf)
    await asyncio.sleep(0)
    failure = await stage.fails(("q", 1), 10)
    assert await ended(waiting) == failure


async def what_another_call_of_the_rank_is_fetching_goes_on(stage: Stage) -> None:
    await stage.told(await stage.fails(("q", 1), 9), 20, Q, issued=9)
    given, sent = stage.receive(Q, R, 10), stage.send(R, Q, 30, LARGE)
    receipt = await given
    await stage.fails(Q, 9)
    await stage.exchange.taken(receipt.number)
    assert await sent is None


async def a_slow_clock_tells_no_earlier_than_the_call_was_issued(stage: Stage) -> None:
    await stage.told(await stage.fails(Q, 105), 101, ("q", 1), issued=105)
    waiting = stage.receive(R, ("q", 1), 104)
    await asyncio.sleep(0)
    failure = await stage.fails(("q", 1), 105)
    assert await ended(waiting) == failure


async def who_waits_in_vain_hears_what_failed_before(stage: Stage) -> None:
    await stage.told(await stage.fails(Q, 10), 20)
    asked = stage.exchange.receive(R, Q, Wanted(), 0, 30, SOON_S)
    problem = await asyncio.wait_for(asked, HANGS_S)
    assert isinstance(problem, Problem)
    assert problem.kind == "timeout"
    assert "nobody else waits; before that, `q` rank 0 on h failed in `m`: Value" in problem.text


async def a_group_of_the_same_name_is_another_one(stage: Stage) -> None:
    broken = asyncio.ensure_future(stage.fails(Q, 10, broken_link=True))
    await asyncio.sleep(0)
    await stage.exchange.leave("q", 20)
    await stage.launch("q")
    waiting = stage.receive(R, Q, 30)
    await broken
    assert await goes_on(waiting)


SCENES: list[Scene] = [
    a_failure_ends_waits_until_a_driver_is_told,
    a_rank_that_fails_late_ends_no_newer_wait,
    so_it_is_when_it_fails_for_another,
    so_it_is_when_it_waits_for_a_death_meanwhile,
    another_call_of_the_rank_is_another_failure,
    two_calls_can_be_given_up,
    what_a_death_leads_to_later_is_news,
    what_it_led_to_before_is_not,
    what_the_failed_call_itself_waits_for_ends,
    what_it_has_been_given_and_did_not_fetch_is_not_sent,
    a_failure_that_is_known_hides_none_that_is_not,
    what_was_told_later_counts_longer,
    what_waits_in_no_call_ends,
    what_another_call_of_the_rank_is_fetching_goes_on,
    a_slow_clock_tells_no_earlier_than_the_call_was_issued,
    who_waits_in_vain_hears_what_failed_before,
    a_group_of_the_same_name_is_another_one,
]


@pytest.mark.parametrize("scene", SCENES)
def test_failures(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "DEATH_S", 0.05)

    async def play() -> None:
        stage = Stage()
        for name in ("p", "q", "r"):
            await stage.launch(name)
        await scene(stage)
        for name in ("p", "q", "r"):
            await stage.exchange.leave(name, 1000)

    asyncio.run(play())
