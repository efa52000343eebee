"""A run that fails ends soon, says why, and leaves nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from rlinf_graph.backends.ray import run as on_ray
from rlinf_graph.backends.ray.run import HOST, Seat
from rlinf_graph.backends.ray.watchdog import Watchdog
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from tests.backends.ray.nearer import until

FILE = Path(__file__).parents[2] / "plans" / "failing.py"
ENDS_S = 10.0
Cores = Callable[..., Cluster]

pytestmark = pytest.mark.timeout(120)


def ready(kind: str, cluster: Cluster) -> Compiled:
    pipeline, _ = load_pipeline(str(FILE))
    return compile_pipeline(pipeline, cluster, parameters={"kind": kind})


def failure(
    compiled: Compiled,
    seats: dict[int, Seat],
    report: Callable[[IterationRecord], None] = lambda _record: None,
    within: float = ENDS_S,
) -> Diagnostic:
    """Run until it fails; at most so many seconds after the first iteration could begin."""
    began: list[float] = []
    with pytest.raises(CompileError) as raised:
        on_ray.run(
            compiled.program, compiled.graph, compiled.plan, compiled.cluster,
            iterations=1000, placed=seats.update, report=report,
            loaded=lambda: began.append(time.monotonic()),
        )  # fmt: skip
    assert time.monotonic() - began[0] < within
    (found,) = raised.value.diagnostics
    return found


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(FILE.read_text().splitlines(), 1) if text in line)


def test_an_exception_in_a_node_names_the_node_and_its_line(
    cores: Cores, seats: dict[int, Seat]
) -> None:
    found = failure(ready("raise", cores()), seats)
    assert found.code == "RG0607"
    assert "`Trouble` failed in iteration 0, rank 0: ValueError: no such answer" in found.message
    assert found.span is not None
    assert found.span.line == line_of("plain(Trouble(kind=kind)")
    assert any(f"failing.py:{line_of('raise ValueError')}" in note for note in found.notes)


def test_an_exception_in_a_reward_names_the_sample(cores: Cores, seats: dict[int, Seat]) -> None:
    found = failure(ready("reward", cores()), seats)
    assert found.code == "RG0507"
    assert "no rule for" in found.render()


def test_a_batch_that_cannot_be_sent(cores: Cores, seats: dict[int, Seat]) -> None:
    found = failure(ready("unpicklable", cores()), seats)
    assert found.code == "RG0607"
    assert "`Remark`" in found.message
    assert "lock" in found.message


@pytest.mark.parametrize("device", [0, HOST], ids=["device", "host"])
def test_a_killed_worker_ends_the_run(device: int, cores: Cores, seats: dict[int, Seat]) -> None:
    """In the middle of the iteration after the first one that is reported."""
    killed: list[int] = []

    def kill(_record: IterationRecord) -> None:
        if not killed:
            killed.append(seats[device].process)
            os.kill(killed[0], signal.SIGKILL)

    found = failure(ready("none", cores()), seats, report=kill)
    assert killed
    assert found.code == "RG0609"
    assert "its process died" in found.message


def test_a_death_is_the_cause_even_when_it_is_heard_of_last(
    cores: Cores, seats: dict[int, Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it reduces gradients: the other rank's broken connection comes first."""
    dogs: list[Watchdog] = []

    class Seen(Watchdog):
        def begin(self, *arguments: Any) -> None:
            dogs.append(self)
            super().begin(*arguments)

    def trains() -> bool:
        pulse: Any = ray.get(dogs[0]._workers[1].pulse.remote())
        return any(group == "train policy" and doing.kind == "OptimizerStep"
                   for (group, _rank), doing in pulse.doing.items())  # fmt: skip

    def kill(_record: IterationRecord) -> None:
        if ray.get(dogs[0]._board.failure.remote()):
            return  # records that came together
        assert until(trains)
        os.kill(seats[1].process, signal.SIGKILL)
        assert until(lambda: ray.get(dogs[0]._board.failure.remote()))

    monkeypatch.setattr(on_ray, "Watchdog", Seen)
    pipeline, _ = load_pipeline(str(FILE.parent / "pipeline.py"))
    compiled = compile_pipeline(
        pipeline, cores(), pins={"rollout": "0-1", "logprobs": "0-1", "train": "0-1"},
        parameters={"epochs": 5, "minibatch": 8},
    )  # fmt: skip
    found = failure(compiled, seats, within=60, report=kill)
    assert found.code == "RG0609"
    assert "rank 1 is gone: its process died" in found.message
    assert "and 1 more rank failed after it" in found.notes
