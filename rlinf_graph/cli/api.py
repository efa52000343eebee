"""Compile and run from Python, as the command line does."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlinf_graph.backends.capable import check_engines
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.output import RunFolder
from rlinf_graph.compiler.compile import Compiled, Objective, accept_plan, compile_graph
from rlinf_graph.compiler.cost.kernels import Kernels
from rlinf_graph.compiler.cost.profile import Profile
from rlinf_graph.dsl.pipeline import Pipeline
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import fail, suggest
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.timeline import Event
from rlinf_graph.nodes.installed import usable_engines
from rlinf_graph.nodes.plugins import load_plugins

BACKENDS = {
    "local": "rlinf_graph.backends.local.run",
    "ray": "rlinf_graph.backends.ray.run",
}
Report = Callable[[IterationRecord, float], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        records: metrics of each iteration, `seconds` among them.
        events: the timeline, on the workers' own clocks.
        seconds: by the wall clock, without loading.
        memory: most bytes in use by device; empty where ranks share a process.
    """

    records: list[dict[str, Any]]
    events: list[Event]
    seconds: float
    memory: Mapping[int, float] = field(default_factory=dict[int, float])

    @property
    def iteration_s(self) -> float:
        """Median seconds of an iteration; the first, which warms up, does not count."""
        times = [record["seconds"] for record in self.records]
        return statistics.median(times[1:] or times)


def compile_pipeline(
    pipeline: Pipeline | Graph,
    cluster: str | Cluster = "local",
    *,
    parameters: Mapping[str, Any] | None = None,
    pins: Mapping[str, str] | None = None,
    plan: Plan | None = None,
    profile: Profile | None = None,
    after: Callable[[str, Graph], None] | None = None,
    runnable: bool = False,
    objective: Objective = "seconds",
    kernels: Kernels | None = None,
) -> Compiled:
    """Check a pipeline and plan it, or check the plan that is given.

    A `runnable` plan has only engines that are installed here, and only what they can do.

    Raises:
        CompileError: with everything that is wrong; RG0408 for a profile that does not belong here.
    """
    load_plugins()
    machines = load_cluster(cluster) if isinstance(cluster, str) else cluster
    graph = pipeline if isinstance(pipeline, Graph) else pipeline.build(**(parameters or {}))
    if plan is not None:
        return accept_plan(graph, machines, plan, profile)
    engines = usable_engines() if runnable else None
    return compile_graph(
        graph, machines, pins=pins, profile=profile, after=after, engines=engines,
        objective=objective, kernels=kernels,
    )  # fmt: skip


def run_compiled(
    compiled: Compiled,
    *,
    iterations: int,
    folder: Path,
    seed: int = 0,
    backend: str = "local",
    address: str | None = None,
    initial: Mapping[str, str] | None = None,
    report: Report = lambda _record, _seconds: None,
) -> RunResult:
    """Run a plan and keep what it gives.

    Args:
        compiled: what to run.
        iterations: how many.
        folder: for metrics, samples and checkpoints of the trained models.
        seed: of every random draw.
        backend: `local` (this process) or `ray` (a process for each device).
        address: of a running Ray cluster to join; by default Ray is started for the run.
        initial: folders to load first weights from, by model.
        report: called with each finished iteration and its seconds.

    Raises:
        CompileError: RG0606 for a backend that is not there, RG0503 for a layout that an engine
            cannot run, else the cause of a failure.
    """
    if backend not in BACKENDS:
        raise fail("RG0606", f"there is no backend `{backend}`", help=(suggest(backend, BACKENDS),))
    check_engines(compiled.graph, compiled.plan, compiled.cluster)
    runner = importlib.import_module(BACKENDS[backend])
    more = {"address": address} if backend == "ray" else {}
    with RunFolder(folder) as out:
        clock = _Clock()

        def finished(record: IterationRecord) -> None:
            seconds = clock.lap()
            out.write(record, seconds=seconds)
            report(record, seconds)

        done = runner.run(
            compiled.program, compiled.graph, compiled.plan, compiled.cluster,
            iterations=iterations, seed=seed, initial=initial, checkpoints=folder / "checkpoint",
            loaded=clock.start, report=finished, **more,
        )  # fmt: skip
    return RunResult(out.records, done.events, clock.total, done.memory)


class _Clock:
    """Seconds of each iteration by the wall clock."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._began = self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    @property
    def total(self) -> float:
        return self._last - self._began
