"""Faults of channels and errors in other systems, each as a scenario that holds here and not there.

A scenario passes, or raises: `Hangs` where it takes too long, AssertionError where the outcome is
wrong. Each runs against this package and against `naive.py`, which has to fail it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import ray

from rlinf_graph.backends.ray.channel.channel import Channel
from rlinf_graph.backends.ray.channel.errors import ChannelError, NameTaken
from rlinf_graph.backends.ray.workers import MismatchError, Reservation, Worker, WorkerGroup
from tests.backends.ray.naive import NaiveChannel, NaiveLink, run_all

ENDS_S = 30.0
"""By then a scenario has ended, or hangs: nothing in it takes long."""

pytestmark = pytest.mark.timeout(120)


class Hangs(Exception):
    """Something did not end."""


def started(call: Callable[[], Any]) -> Future[Any]:
    """Carry out a call in a thread that nobody has to wait for."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def ended(future: Future[Any]) -> Any:
    """Its result or its error, which has to come soon."""
    try:
        return future.result(ENDS_S)
    except TimeoutError:
        if future.done():
            raise
        raise Hangs from None


def full_queue_refuses_what_may_not_wait(create: Any) -> None:
    channel = create(capacity=1)
    channel.put("first")
    channel.flush()
    refused = started(lambda: channel.put_nowait("second"))
    with pytest.raises(ChannelError):
        ended(refused)


def backlog_of_one_key_blocks_no_other(create: Any) -> None:
    channel = create(capacity=1)
    channel.put("a", "full")
    channel.flush()
    late = started(lambda: (channel.put("b", "full"), channel.flush()))
    ended(started(lambda: (channel.put("c", "free"), channel.flush())))
    assert ended(started(lambda: channel.get("free"))) == "c"
    assert [ended(started(lambda: channel.get("full"))) for _ in "ab"] == ["a", "b"]
    ended(late)


def one_of_two_batches_comes_whole(create: Any) -> None:
    channel = create()
    asked = [started(lambda: channel.get_batch(4)) for _ in range(2)]
    for number in range(4):
        channel.put(number)
    channel.flush()
    end = time.monotonic() + ENDS_S
    while not any(one.done() for one in asked):
        if time.monotonic() > end:
            raise Hangs
        time.sleep(0.02)  # between looks, not instead of one
    assert [one.result() for one in asked if one.done()] == [[0, 1, 2, 3]]
    for number in range(4):
        channel.put(number)
    channel.flush()
    assert [ended(one) for one in asked] == [[0, 1, 2, 3]] * 2


def heavy_first_item_comes_alone(create: Any) -> None:
    channel = create()
    channel.put("heavy", weight=10)
    assert ended(started(lambda: channel.get_batch(4))) == ["heavy"]


def batch_that_cannot_come_together_is_an_error(create: Any) -> None:
    channel = create(capacity=2)
    asked = started(lambda: channel.get_batch(5))
    for _ in range(2):
        channel.put("weightless", weight=0)
    late = started(lambda: (channel.put("weightless", weight=0), channel.flush()))
    with pytest.raises(ChannelError):
        ended(asked)
    assert ended(started(channel.get)) == "weightless"
    ended(late)


def name_never_leads_to_the_old_channel(create: Any) -> None:
    old = create("again")
    old.put("of the old one")
    old.flush()
    with contextlib.suppress(NameTaken):
        new = create("again")
        new.put("of the new one")
        assert ended(started(new.get)) == "of the new one"
    old.close()


def puts_do_not_pile_up_at_the_sender(create: Any) -> None:
    channel = create(capacity=2)
    accepted: list[int] = []

    def put() -> None:
        for number in range(20):
            channel.put(bytes(1 << 20))
            accepted.append(number)

    putting = started(put)
    known, since = -1, time.monotonic()
    while time.monotonic() - since < 1.0:  # until nothing more is accepted
        if len(accepted) != known:
            known, since = len(accepted), time.monotonic()
        time.sleep(0.02)  # between looks, not instead of one
    assert len(accepted) <= 3
    for _ in range(20):
        ended(started(channel.get))
    ended(putting)


CHANNELS = [
    full_queue_refuses_what_may_not_wait,
    backlog_of_one_key_blocks_no_other,
    one_of_two_batches_comes_whole,
    heavy_first_item_comes_alone,
    batch_that_cannot_come_together_is_an_error,
    name_never_leads_to_the_old_channel,
    puts_do_not_pile_up_at_the_sender,
]


@pytest.mark.parametrize("scenario", CHANNELS)
def test_channels_have_none_of_the_known_faults(
    scenario: Callable[[Any], None], ray_nodes: list[str]
) -> None:
    scenario(Channel.create)


@pytest.mark.parametrize("scenario", CHANNELS)
def test_a_naive_channel_has_each_of_them(
    scenario: Callable[[Any], None], ray_nodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each for its reason: it hangs, or what comes is wrong."""
    monkeypatch.setattr("tests.backends.ray.test_known_faults.ENDS_S", 5.0)
    made: list[NaiveChannel] = []

    def create(*args: Any, **options: Any) -> NaiveChannel:
        made.append(NaiveChannel.create(*args, **options))
        return made[-1]

    with pytest.raises((Hangs, AssertionError, pytest.fail.Exception)):
        scenario(create)
    for channel in made:
        channel.close()


class Rank(Worker):
    """A rank that waits for another, or fails."""

    def fail_at(self, rank: int) -> None:
        if self.rank == rank:
            raise ValueError("the reason")
        self.barrier(timeout=60)

    def give(self, values: list[Any], group: str, rank: int) -> None:
        for value in values:
            self.send(value() if callable(value) else value, group, rank, timeout=60)

    def take(self, group: str, rank: int) -> Any:
        return self.recv(group, rank, timeout=60)


@ray.remote(num_cpus=0)
class NaiveRank:
    def fail_at(self, rank: int, me: int) -> None:
        if me == rank:
            raise ValueError("the reason")
        threading.Event().wait()


@pytest.fixture(scope="module")
def groups(
    ray_nodes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WorkerGroup, WorkerGroup]]:
    from rlinf_graph.ir.cluster_file import load_cluster

    with Reservation(load_cluster("1xcpu")) as made:
        seats = made.without_devices
        with (
            WorkerGroup.launch(Rank, (), seats(2), name="two") as two,
            WorkerGroup.launch(Rank, (), seats(1), name="one") as one,
        ):
            yield two, one


def reason_is_told(run: Callable[[], Any]) -> None:
    """Of a group whose rank 1 fails while rank 0 waits for it."""
    error = started(run).exception(ENDS_S)
    assert "the reason" in str(error)
    assert "ray.kill" not in str(error)


def test_the_exception_is_told_and_not_that_others_were_ended(
    groups: tuple[WorkerGroup, WorkerGroup],
) -> None:
    reason_is_told(lambda: groups[0].fail_at(1).wait(60))


def test_a_naive_group_tells_that_it_was_killed(ray_nodes: list[str]) -> None:
    actors = [NaiveRank.remote() for _ in range(2)]
    with pytest.raises(AssertionError):
        reason_is_told(
            lambda: run_all(actors, [a.fail_at.remote(1, me) for me, a in enumerate(actors)])
        )


def step_is_kept_after_a_failed_send(send: Any, take: Any) -> None:
    """The receiver of a send that failed gets the next value, or an error first; nothing else."""
    taking = started(take)
    with pytest.raises(Exception, match="lock"):
        ended(started(lambda: send(threading.Lock)))
    lost = failed(taking)  # before it is known, its failure is also that of who sends to it
    second = started(lambda: send("second"))
    value = ended(started(take)) if lost else ended(taking)
    assert value == "second"
    ended(second)


def failed(future: Future[Any]) -> bool:
    """Whether it ended in an error; where only the naive link has nothing to tell, not in time."""
    with contextlib.suppress(TimeoutError):
        return future.exception(ENDS_S) is not None
    return False


def test_a_send_that_fails_leaves_nobody_out_of_step(
    groups: tuple[WorkerGroup, WorkerGroup],
) -> None:
    two, one = groups
    step_is_kept_after_a_failed_send(
        lambda value: two.on(0).give([value], "one", 0).wait(60),
        lambda: one.take("two", 0).wait(60)[0],
    )


def test_a_naive_link_is_out_of_step(ray_nodes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.backends.ray.test_known_faults.ENDS_S", 5.0)
    link = NaiveLink()
    with pytest.raises((Hangs, AssertionError)):
        step_is_kept_after_a_failed_send(
            lambda value: link.send(value() if callable(value) else value, "a", "b"),
            lambda: link.recv("a", "b"),
        )
    link.close()


def missing_rank_is_an_error(take: Any) -> None:
    """Three receivers, each from the sender of its number, and two senders."""
    taking = started(lambda: take(2))
    with pytest.raises(MismatchError, match="no rank 2"):
        raise cause_of(taking)


def cause_of(future: Future[Any]) -> BaseException:
    try:
        ended(future)
    except Hangs:
        raise
    except Exception as error:
        return error.__cause__ or error
    raise AssertionError("no error")


def test_sizes_that_do_not_fit_are_an_error_at_once(
    groups: tuple[WorkerGroup, WorkerGroup],
) -> None:
    missing_rank_is_an_error(lambda rank: groups[1].take("two", rank).wait(60))


def test_sizes_that_do_not_fit_hang_naively(
    ray_nodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.backends.ray.test_known_faults.ENDS_S", 5.0)
    link = NaiveLink()
    with pytest.raises(Hangs):
        missing_rank_is_an_error(lambda rank: link.recv(rank, rank))
    link.close()
