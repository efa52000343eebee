"""Faults in runs of compiled programs: each ends soon, says why, and leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlinf_graph.backends.ray import run as on_ray
from rlinf_graph.backends.ray import watchdog
from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from tests.backends.ray.conftest import stored

ROOT = Path(__file__).parents[3]
FILE = ROOT / "tests" / "plans" / "faulty.py"
DEAF_S = 3.0
"""Here; a minute elsewhere."""
ENDS_S = 10.0
"""After detection."""
LOADS_S = 90.0
FORGETS_S = 5.0
"""Within which Ray has forgotten an object."""
Cores = Callable[..., Cluster]
Seats = dict[int, Seat]

pytestmark = pytest.mark.timeout(LOADS_S + 90)

CAUSES = {
    "raise": ("RG0607", "`Maker` failed in iteration 1, rank 0: ValueError: no such answer"),
    "leave": ("RG0607", "`Maker` failed in iteration 1, rank 0: SystemExit: 3"),
    "unpicklable": ("RG0607", "`Maker` failed in iteration 1, rank 0: TypeError: cannot pickle"),
    "exit": ("RG0609", "the worker of `Maker` rank 0 is gone: its process died"),
    "kill": ("RG0609", "the worker of `Maker` rank 0 is gone: its process died"),
    "stop": ("RG0610", "the worker of `Maker` rank 0 has not answered for"),
    "hold": ("RG0611", "nothing has happened for"),
}


def ready(cluster: Cluster, **parameters: Any) -> Compiled:
    pipeline, _ = load_pipeline(str(FILE))
    return compile_pipeline(pipeline, cluster, parameters=parameters)


def failure(compiled: Compiled, seats: Seats, within: float, **options: Any) -> Diagnostic:
    """Run until it fails, at most `within` seconds after the first iteration could begin."""
    began: list[float] = []
    with pytest.raises(CompileError) as raised:
        on_ray.run(
            compiled.program, compiled.graph, compiled.plan, compiled.cluster,
            iterations=1000, placed=seats.update,
            loaded=lambda: began.append(time.monotonic()), **options,
        )  # fmt: skip
    assert time.monotonic() - began[0] < within
    (found,) = raised.value.diagnostics
    return found


@pytest.mark.soak(50, 3)
@pytest.mark.parametrize("kind", CAUSES)
def test_a_fault_ends_the_run_with_its_cause(
    kind: str, cores: Cores, seats: Seats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second iteration; the first cause, the node's line, the machine and the process."""
    monkeypatch.setattr(watchdog, "DEAF_S", DEAF_S)
    monkeypatch.setattr(watchdog, "LEAP_S", 1.5)  # a pause of the driver is no silence
    patience = {"patience_s": DEAF_S} if kind == "hold" else {}
    found = failure(ready(cores(1), kind=kind), seats, ENDS_S + DEAF_S, **patience)
    code, message = CAUSES[kind]
    assert found.code == code
    assert found.message.startswith(message)
    assert found.span is not None
    assert "Maker(kind=kind" in found.span.source
    told = "\n".join([found.message, *found.notes])
    if kind != "hold":
        assert str(seats[0].process) in told
        assert seats[0].host in told
    if kind in ("stop", "hold"):
        assert "`Reader` rank 0 waits for samples of `Maker -> Reader.parcels`" in told
        assert "of `Maker` rank 0" in told
    assert "failed after it" not in told


@pytest.mark.soak(50, 3)
def test_a_consumer_that_is_slow_slows_its_producer(cores: Cores, seats: Seats) -> None:
    """A hundred times slower: everything arrives, and no more is kept than the edges hold."""
    compiled = ready(cores(1), megabytes=1.0, pause_s=0.2)
    held = sum(channel.capacity + 1 for channel in compiled.program.channels)
    most, came = 0, list[int]()

    def look(record: IterationRecord) -> None:
        """Ray forgets objects some time after their last reference is gone."""
        nonlocal most
        came.append(record.iteration)
        until = time.monotonic() + FORGETS_S
        while (now := stored()) > held + 2 and time.monotonic() < until:
            time.sleep(0.01)  # between looks, not instead of one
        most = max(most, now)

    on_ray.run(
        compiled.program, compiled.graph, compiled.plan, compiled.cluster,
        iterations=12, placed=seats.update, report=look,
    )  # fmt: skip
    assert came == list(range(12))
    assert 0 < most <= held + 2  # the job itself, and what is on its way


def test_ranks_that_wait_for_one_another_end_with_the_cycle(cores: Cores, seats: Seats) -> None:
    """A program that was changed: no edge has room."""
    compiled = ready(cores(1))
    channels = tuple(replace(channel, capacity=0) for channel in compiled.program.channels)
    program = replace(compiled.program, channels=channels)
    changed: Any = SimpleNamespace(
        program=program, graph=compiled.graph, plan=compiled.plan, cluster=compiled.cluster
    )
    found = failure(changed, seats, ENDS_S)
    assert found.code == "RG0603"
    assert "its ranks wait for one another" in found.message
    assert "`dataset` rank 0 waits for room in `dataset -> Maker.prompts`" in "".join(found.notes)
    assert "of `dataset` rank 0 for" in "".join(found.notes)


@pytest.mark.soak(50, 3)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("disk", ["free", "full"])
def test_a_full_object_store_spills_or_says_so(disk: str) -> None:
    """In Ray sessions of their own, with a store that is too small."""
    command = [sys.executable, "-m", "tests.backends.ray.small_store", disk]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    if disk == "free":
        assert told["run"] == "6 iterations"
        assert told["seconds"] < LOADS_S
        assert told["channel"] == "12 items"
    else:
        assert told["run"].startswith("error[RG0607]: `Maker` failed in iteration")
        assert "OutOfDiskError" in told["run"]
        assert told["channel"].startswith("OutOfDiskError")
        assert told["seconds"] < ENDS_S
    assert told["left"] == []
