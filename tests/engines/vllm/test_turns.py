"""Threads alone, and what vLLM would draw."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rlinf_graph.engines.vllm.turns import Turns

HANG_S = 20


def started(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def ended(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(HANG_S)
        assert not thread.is_alive()


def test_what_is_asked_for_in_a_step_happens_before_the_next() -> None:
    turns, seen = Turns(), []

    def other() -> None:
        with turns.between():
            seen.append("between")

    turns.begin()
    for number in range(3):
        with turns.step():
            seen.append(number)
            if number == 1:
                thread = started(other)
                while turns._asked == 0:
                    threading.Event().wait(0.001)
    turns.end(lambda: seen.append("end"))
    ended(thread)
    assert seen == [0, 1, "between", 2, "end"]


def test_the_sampling_thread_may_change_something_itself_while_it_rests() -> None:
    for turns in (Turns(), Turns(lambda number: number)):
        turns.begin()
        with turns.step():
            pass
        with turns.rest(), turns.between():
            pass
        with turns.step():
            pass
        turns.end(lambda: None)


def test_an_error_in_between_blocks_nobody() -> None:
    turns = Turns()
    turns.begin()
    with pytest.raises(ValueError, match="torn"), turns.between():
        raise ValueError("torn")
    with turns.step():
        pass
    turns.end(lambda: None)


def test_two_cannot_sample_and_nobody_samples_asleep() -> None:
    turns = Turns()
    turns.begin()
    with pytest.raises(RuntimeError, match="sampling already"):
        turns.begin()
    turns.end(lambda: None)
    turns.asleep = True
    with pytest.raises(RuntimeError, match="sleeps: wake it"):
        turns.begin()


def test_sampling_waits_while_the_engine_sleeps() -> None:
    turns, steps = Turns(), []
    asleep = threading.Event()

    def sample() -> None:
        turns.begin()
        for number in range(4):
            with turns.step():
                steps.append(number)
            if number == 1:
                assert asleep.wait(HANG_S)
        turns.end(lambda: None)

    thread = started(sample)
    while len(steps) < 2:
        threading.Event().wait(0.001)
    with turns.between():
        turns.asleep = True
    asleep.set()
    with turns.between():
        seen = len(steps)
    assert seen == 2
    with turns.between():
        turns.asleep = False
    ended(thread)
    assert steps == [0, 1, 2, 3]


class Replica:
    """Processes as threads: each has turns, and the largest number is agreed on."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=HANG_S)
        self._given = [0] * size
        self.turns = [Turns(lambda number, at=at: self._agreed(at, number)) for at in range(size)]
        self.seen: list[list[Any]] = [[] for _ in range(size)]

    def _agreed(self, at: int, number: int) -> int:
        self._given[at] = number
        self._barrier.wait()
        largest = max(self._given)
        self._barrier.wait()
        return largest


@pytest.mark.parametrize("slow", [0, 1])
def test_processes_of_a_replica_do_it_between_the_same_steps(slow: int) -> None:
    replica, steps = Replica(2), 6
    reached = threading.Event()

    def sample(at: int) -> None:
        turns = replica.turns[at]
        turns.begin()
        for number in range(steps):
            with turns.step():
                replica.seen[at].append(number)
            if number == 2:
                reached.set()
        turns.end(lambda: None)

    def change(at: int) -> None:
        assert reached.wait(HANG_S)
        if at == slow:  # it is asked for elsewhere, and later here
            while replica.turns[1 - slow]._asked == 0:
                threading.Event().wait(0.001)
        with replica.turns[at].between():
            replica.seen[at].append("new")

    threads = [started(partial(work, at)) for at in (0, 1) for work in (sample, change)]
    ended(*threads)
    first, second = replica.seen
    assert first == second
    assert [step for step in first if step != "new"] == list(range(steps))
    assert first.count("new") == 1


def test_what_comes_before_one_process_samples_comes_before_the_others_do() -> None:
    replica = Replica(2)
    with replica.turns[0].between():
        replica.seen[0].append("new")

    def sample(at: int) -> None:
        replica.turns[at].begin()
        for number in range(2):
            with replica.turns[at].step():
                replica.seen[at].append(number)
        replica.turns[at].end(lambda: None)

    threads = [started(partial(sample, at)) for at in (0, 1)]
    while not replica.turns[1]._sampling:
        threading.Event().wait(0.001)
    with replica.turns[1].between():
        replica.seen[1].append("new")
    ended(*threads)
    assert replica.seen == [["new", 0, 1], ["new", 0, 1]]


class Drawing:
    """What a sampler asks of vLLM: the first response ends with its first token, others never."""

    def __init__(self) -> None:
        room = SimpleNamespace(max_model_len=1000)
        self.vllm_config = SimpleNamespace(model_config=room)
        self.live: list[str] = []

    def add_request(self, name: str, _prompt: Any, _params: Any) -> None:
        self.live.append(name)

    def abort_request(self, names: list[str]) -> None:
        self.live = [name for name in self.live if name not in names]

    def step(self) -> list[Any]:
        made = [self._drawn(name) for name in self.live]
        self.live = [name for name in self.live if name != "0"]
        return made

    def _drawn(self, name: str) -> Any:
        said = SimpleNamespace(
            token_ids=[5],
            logprobs=SimpleNamespace(logprobs=[-1.0]),
            finish_reason="stop" if name == "0" else None,
        )
        return SimpleNamespace(request_id=name, outputs=[said])


@pytest.mark.engines
@pytest.mark.timeout(120)
def test_an_abort_while_one_process_rests_ends_all_after_the_same_step() -> None:
    pytest.importorskip("vllm")
    from rlinf_graph.engines.vllm.answers import Answer
    from rlinf_graph.engines.vllm.sampler import Sampler
    from rlinf_graph.nodes.engine import Sampling

    replica, text = Replica(2), cast("Any", SimpleNamespace(ends=[2]))
    samplers = [Sampler(Drawing(), text, turns, lambda: None) for turns in replica.turns]
    rested = threading.Event()

    def sample(at: int) -> None:
        answers = [Answer(0, number, [3], number) for number in range(2)]
        for part in samplers[at].run(answers, Sampling(samples=2, max_tokens=900), 0):
            replica.seen[at].append([len(answer.tokens) for answer in part])
            if at == 0 and not rested.is_set():
                ended(started(samplers[0].stop))
                rested.set()

    def late() -> None:
        assert rested.wait(HANG_S)
        while not replica._barrier.n_waiting and not replica.turns[1]._admitted:
            threading.Event().wait(0.001)
        samplers[1].stop()

    ended(*[started(partial(sample, at)) for at in (0, 1)], started(late))
    assert replica.seen == [[[1], [1]], [[1], [1]]]
