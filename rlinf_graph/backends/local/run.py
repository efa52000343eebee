"""Run a program in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlinf_graph.backends.cores import on_cores
from rlinf_graph.backends.engines import Engines
from rlinf_graph.backends.local.machine import LocalMachine
from rlinf_graph.backends.record import IterationRecord, Recorder
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.interpreter import Interpreter
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.program import Program
from rlinf_graph.ir.timeline import Event


@dataclass(frozen=True)
class LocalRun:
    """A finished run: its events and engines; memory by device, which one process cannot tell."""

    events: list[Event]
    machine: LocalMachine
    memory: Mapping[int, float] = field(default_factory=dict[int, float])


def run(
    program: Program,
    graph: Graph,
    plan: Plan,
    cluster: Cluster,
    *,
    iterations: int,
    seed: int = 0,
    initial: Mapping[str, str] | None = None,
    checkpoints: Path | None = None,
    loaded: Callable[[], None] = lambda: None,
    report: Callable[[IterationRecord], None] = lambda _record: None,
) -> LocalRun:
    """Interpret a program, all its workers in turn.

    Args:
        program: of `graph` and `plan`.
        graph: after the passes.
        plan: checked.
        cluster: says what the devices are.
        iterations: how many.
        seed: of every random draw.
        initial: folders to load first weights from, by model, instead of the declared ones.
        checkpoints: folder to write the trained models to.
        loaded: called when the models are there and the first iteration begins.
        report: called with each finished iteration.

    Raises:
        CompileError: with the cause, when a node fails.
    """
    with on_cores(_cores(program, cluster)):
        done = _run(program, graph, plan, cluster, iterations, seed, initial or {}, loaded, report)
        for model, node in graph.trainers().items():
            if checkpoints is None:
                break
            done.machine.save(program.group(node.name), checkpoints / model)
    return done


def _run(
    program: Program,
    graph: Graph,
    plan: Plan,
    cluster: Cluster,
    iterations: int,
    seed: int,
    initial: Mapping[str, str],
    loaded: Callable[[], None],
    report: Callable[[IterationRecord], None],
) -> LocalRun:
    places = [(group, rank) for group in program.groups for rank in range(group.ranks)]
    engines = Engines(graph, plan, cluster, places, seed=seed, initial=initial)
    recorder = Recorder(len(places), report)
    machine = LocalMachine(graph, plan, program, engines, recorder, seed)
    loaded()
    events = Interpreter(program, machine, seed=seed).run(iterations)
    return LocalRun(events, machine)


def _cores(program: Program, cluster: Cluster) -> int:
    """Of the widest rank on processor cores; 0 without one."""
    return max(
        (
            len(group.devices_of(0))
            for group in program.groups
            if group.devices and cluster.group_of(group.devices[0]).device.kind == "cpu"
        ),
        default=0,
    )
