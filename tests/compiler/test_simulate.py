"""The simulation and `local` run the same program."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

from rlinf_graph.backends.local import run as local
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.simulate import SimulatedMachine, simulate
from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.interpreter import Interpreter
from rlinf_graph.ir.timeline import Event, period

PLANS = Path(__file__).parents[1] / "plans"
NAMES = ("one_device", "collocated", "disaggregated", "hybrid")


def compiled(name: str, folder: Path, staleness: int = 0) -> Compiled:
    file = folder / "two.toml"
    file.write_text(
        'name = "two"\n[[node_group]]\nname = "cpu"\ndevice = "cpu-core"\nnodes = 1\n'
        "devices_per_node = 2\ncpus = 2\nmemory_gb = 8\n"
    )
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    given = plans.loads((PLANS / f"{name}.json").read_text(), name)
    if staleness:
        lag = {"sync policy": plans.SyncPlan(method="broadcast", staleness=staleness)}
        given = given.model_copy(update={"syncs": lag})
    parameters = {"max_staleness": staleness}
    return compile_pipeline(pipeline, str(file), plan=given, parameters=parameters)


def identity(event: Event) -> tuple[object, ...]:
    return event.kind, event.group, event.at, event.devices


@pytest.mark.parametrize("name", NAMES)
def test_simulation_and_local_emit_the_same_events(name: str, tmp_path: Path) -> None:
    ready = compiled(name, tmp_path)
    machine = SimulatedMachine(ready.graph, ready.plan, ready.cluster, ready.costs)
    simulated = Interpreter(ready.program, machine).run(2)
    done = local.run(ready.program, ready.graph, ready.plan, ready.cluster, iterations=2)
    assert Counter(map(identity, simulated)) == Counter(map(identity, done.events))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("staleness", [0, 1])
def test_no_device_does_two_things_at_once(name: str, staleness: int, tmp_path: Path) -> None:
    ready = compiled(name, tmp_path, staleness)
    events = simulate(ready.program, ready.graph, ready.plan, ready.cluster, ready.costs, 5)
    for device in range(2):
        here = sorted((e.start, e.end) for e in events if device in e.devices and e.seconds > 0)
        assert all(a[1] <= b[0] + 1e-12 for a, b in itertools.pairwise(here))


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_stands_for_all(name: str, tmp_path: Path) -> None:
    ready = compiled(name, tmp_path)
    machine = SimulatedMachine(ready.graph, ready.plan, ready.cluster, ready.costs)
    whole = Interpreter(ready.program, machine).run(4)
    one = Interpreter(ready.program, machine, one_rank=True).run(4)
    assert period(one, 4) == pytest.approx(period(whole, 4), rel=1e-9)


def test_staleness_overlaps_rollout_and_training(tmp_path: Path) -> None:
    seconds = []
    for staleness in (0, 1):
        ready = compiled("disaggregated", tmp_path, staleness)
        events = simulate(ready.program, ready.graph, ready.plan, ready.cluster, ready.costs, 8)
        seconds.append(period(events, 8))
    assert seconds[1] < seconds[0]
