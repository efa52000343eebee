"""Worker groups: what a process is told, and how calls reach it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlinf_graph.backends.ray.workers import (
    Handle,
    NodeSettings,
    Reservation,
    Worker,
    WorkerError,
    WorkerGroup,
    dispatched,
)
from rlinf_graph.ir.batches import Rewards
from rlinf_graph.ir.cluster_file import load_cluster

pytestmark = pytest.mark.timeout(120)
SPMD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
        "VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")  # fmt: skip

GROUP = """[[node_group]]
name = "{}"
device = "cpu-core"
nodes = 1
devices_per_node = 2
cpus = 2
memory_gb = 4
"""


class Speaker(Worker):
    def __init__(self, word: str, times: int = 1) -> None:
        self.word = word * times
        self.at_start = self.rank, self.world_size
        self.gate, self.holding = threading.Event(), threading.Event()

    def told(self) -> dict[str, Any]:
        env = {name: os.environ[name] for name in SPMD}
        return env | {"devices": self.devices, "process": os.getpid(), "at_start": self.at_start,
                      "threads": torch.get_num_threads()}  # fmt: skip

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def say(self, what: str) -> str:
        return f"{self.rank}: {self.word} {what}"

    async def later(self, what: str) -> str:
        await asyncio.sleep(0)
        return self.say(what)

    @dispatched("shard", collect="concat")
    def doubled(self, values: Any, factor: int = 2) -> Any:
        if isinstance(values, Rewards):
            return replace(values, values=values.values * factor)
        return [value * factor for value in values] if isinstance(values, list) else values * factor

    @dispatched("rank0")
    def leader(self) -> int:
        return self.rank

    def hold(self) -> str:
        self.holding.set()
        self.gate.wait()
        return "released"

    def begun(self) -> None:
        self.holding.wait()

    def release(self) -> None:
        self.gate.set()

    def unpicklable(self) -> Any:
        return threading.Lock()


@pytest.fixture(scope="module")
def reservation(
    ray_nodes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reservation]:
    """Two machines with two devices each, the first with variables and an interpreter."""
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "two.toml"
    file.write_text('name = "two"\n' + "".join(GROUP.format(name) for name in ("first", "second")))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexport STARTED_BY="$0"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    settings = {"first": NodeSettings({"GREETING": "hello"}, str(python))}
    with Reservation(load_cluster(str(file)), settings) as made:
        yield made


@pytest.fixture(scope="module")
def group(reservation: Reservation) -> Iterator[WorkerGroup]:
    with launch(reservation, range(4), kwargs={"times": 2}, concurrency=2) as made:
        yield made


def launch(reservation: Reservation, devices: Sequence[int], **how: Any) -> WorkerGroup:
    return WorkerGroup.launch(Speaker, ("ho",), reservation.on(devices), **how)


def test_ranks_follow_the_devices_and_know_their_place(group: WorkerGroup) -> None:
    told = group.told().wait(30)
    assert [t["devices"] for t in told] == [(0,), (1,), (2,), (3,)]
    assert [t["RANK"] for t in told] == ["0", "1", "2", "3"]
    assert [t["LOCAL_RANK"] for t in told] == ["0", "1", "0", "1"]
    assert [t["VISIBLE_DEVICES"] for t in told] == ["0", "1", "0", "1"]
    assert {(t["WORLD_SIZE"], t["LOCAL_WORLD_SIZE"], t["CUDA_VISIBLE_DEVICES"]) for t in told} == {
        ("4", "2", "")
    }
    assert len({(t["MASTER_ADDR"], t["MASTER_PORT"]) for t in told}) == 1
    assert [t["process"] for t in told] == list(group.processes)
    assert [t["at_start"] for t in told] == [(rank, 4) for rank in range(4)]
    assert len(group.hosts) == group.size == 4


def test_node_groups_have_variables_and_an_interpreter(group: WorkerGroup) -> None:
    assert group.variable("GREETING").wait() == ["hello", "hello", None, None]
    started = group.variable("STARTED_BY").wait()
    assert [Path(by).name for by in started[:2]] == ["python", "python"]
    assert started[2:] == [None, None]


def test_several_devices_and_several_processes(reservation: Reservation) -> None:
    """Two groups, on the same devices."""
    wide = reservation.on([2, 3], devices_per_process=2)
    dense = reservation.on([3], processes_per_device=2)
    with (
        WorkerGroup.launch(Speaker, ("",), wide, name="wide") as one,
        WorkerGroup.launch(Speaker, ("",), dense, name="dense") as two,
    ):
        told = one.told().wait(30) + two.told().wait(30)
    assert [t["devices"] for t in told] == [(2, 3), (3,), (3,)]
    assert [t["VISIBLE_DEVICES"] for t in told] == ["0,1", "1", "1"]
    assert [t["LOCAL_RANK"] for t in told] == ["0", "0", "1"]
    assert [t["threads"] for t in told] == [2, 1, 1]
    assert len({t["process"] for t in told}) == 3


def test_what_cannot_be_placed_is_refused(reservation: Reservation) -> None:
    for wrong, why in (
        (dict(devices=[1, 2], devices_per_process=2), "machines 0, 1"),
        (dict(devices=[0, 1, 2], devices_per_process=2), "3 devices do not make"),
        (dict(devices=[1, 2, 0, 3], tensor_parallel=2), "tensor-parallel ranks 0 to 1"),
        (dict(devices=[0, 1, 2], tensor_parallel=2), "3 ranks do not make"),
        (dict(devices=[0, 0]), "each of them once"),
        (dict(devices=[0, 1], devices_per_process=2, processes_per_device=2), "several"),
    ):
        with pytest.raises(ValueError, match=why):
            reservation.on(**wrong)  # type: ignore[arg-type]  # as listed
    with pytest.raises(IndexError):
        reservation.on([4])
    with pytest.raises(IndexError):
        reservation.without_devices(machine=2)
    reservation.on([0, 1, 2, 3], tensor_parallel=2)


def test_calls_are_spread_and_collected(group: WorkerGroup) -> None:
    assert group.say("ho").wait() == [f"{rank}: hoho ho" for rank in range(4)]
    assert group.on([2, 1]).say("!").wait() == ["1: hoho !", "2: hoho !"]
    assert group.on(3).later("!").wait() == ["3: hoho !"]
    assert group.on(collect="rank0").say("!").wait() == "0: hoho !"
    assert group.leader().wait() == 0
    assert group.doubled([1, 2, 3, 4, 5, 6]).wait() == [2, 4, 6, 8, 10, 12]
    assert group.doubled([1], factor=3).wait() == [3]
    wide = torch.arange(40_000, dtype=torch.bfloat16).reshape(400, 100)
    assert torch.equal(group.doubled(wide).wait(), wide * 2)
    parts = group.on([0, 3], collect="all").doubled(np.arange(5)).wait()
    assert [part.tolist() for part in parts] == [[0, 2], [4, 6, 8]]
    index = torch.arange(6)
    given = Rewards(index=index, group=index // 2, values=torch.arange(6.0))
    rewards = group.doubled(given, factor=10).wait()
    assert torch.equal(rewards.values, given.values * 10)
    assert torch.equal(rewards.group, given.group)
    with pytest.raises(ValueError, match="one length"):
        group.doubled(1)
    with pytest.raises(ValueError, match="`nobody` is none of"):
        group.on(spread="nobody").say("!")  # type: ignore[arg-type]  # refused
    with pytest.raises(IndexError):
        group.on(4)
    with pytest.raises(AttributeError, match="no public method `shout`"):
        group.shout()


def test_a_handle_waits_is_awaited_and_measures(group: WorkerGroup) -> None:
    async def together(*handles: Handle) -> list[Any]:
        return list(await asyncio.gather(*(_awaited(handle) for handle in handles)))

    held = group.hold()
    group.begun().wait(30)
    assert not held.done()
    with pytest.raises(TimeoutError, match="`hold` of `Speaker`: no answer of rank 0, 1, 2, 3"):
        held.wait(0.1)
    group.on([0, 2]).release().wait()
    late, deadline = "", time.monotonic() + 30
    while "no answer of rank 1, 3 " not in late:
        assert time.monotonic() < deadline, late
        with pytest.raises(TimeoutError) as raised:
            held.wait(0.5)
        late = str(raised.value)
    group.on([1, 3]).release().wait()
    assert held.wait(10) == ["released"] * 4
    assert held.done()
    taken = held.durations()
    assert list(taken.by_rank) == [0, 1, 2, 3]
    assert 0.1 < taken.min <= taken.median <= taken.max < 30
    assert asyncio.run(together(group.leader(), group.on(1).say("x"))) == [0, ["1: hoho x"]]


async def _awaited(handle: Handle) -> Any:
    return await handle


def test_classes_names_and_results_that_do_not_fit(
    reservation: Reservation, group: WorkerGroup
) -> None:
    class Clash(Worker):
        def close(self) -> None: ...

    one = reservation.on([0])
    with pytest.raises(TypeError, match="Clash: a group has `close`"):
        WorkerGroup.launch(Clash, (), one)
    with pytest.raises(TypeError, match="does not derive from Worker"):
        WorkerGroup.launch(dict, (), one)  # type: ignore[arg-type]  # refused
    with pytest.raises(ValueError, match="`Speaker` is open already"):
        launch(reservation, [0])
    with pytest.raises(WorkerError, match=r"(?s)in `unpicklable`: TypeError: cannot pickle"):
        group.on(0).unpicklable().wait(10)
    assert group.leader().wait() == 0
    with pytest.raises(WorkerError, match=r"in `__init__`: TypeError: can't multiply"):
        WorkerGroup.launch(Speaker, ("ho", "ho"), one, name="wrong")
