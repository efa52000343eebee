"""Compile and run from Python, as the command line does."""

from __future__ import annotations

import importlib
import inspect
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from rlinf_graph.ir.graph import Graph, ModelDef
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.timeline import Event
from rlinf_graph.nodes.installed import Installed
from rlinf_graph.nodes.plugins import load_plugins

BACKENDS = {
    "local": "rlinf_graph.backends.local.run",
    "ray": "rlinf_graph.backends.ray.run",
}
ROLES = ("rollout", "train")
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
    pythons: Mapping[str, str] | None = None,
    own: bool = False,
    objective: Objective = "seconds",
    kernels: Kernels | None = None,
) -> Compiled:
    """Check a pipeline and plan it, or check the plan that is given.

    A `runnable` plan has only engines that are installed here, or in the interpreters that
    `pythons` gives for them, and only what they can do; with `own`, those that run in this one
    process. The parameters `rollout` and `train` name the engines of all models, where the
    pipeline has no parameters of these names.

    Raises:
        CompileError: with everything that is wrong; RG0408 for a profile that does not belong here.
    """
    load_plugins()
    machines = load_cluster(cluster) if isinstance(cluster, str) else cluster
    graph = pipeline if isinstance(pipeline, Graph) else build(pipeline, parameters or {})
    if plan is not None:
        return accept_plan(graph, machines, plan, profile)
    engines = Installed(tuple((pythons or {}).items()), own) if runnable else None
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
    pythons: Mapping[str, str] | None = None,
    bucket_mb: float | None = None,
    checksums: bool = False,
    initial: Mapping[str, str] | None = None,
    report: Report = lambda _record, _seconds: None,
    patience_s: float | None = None,
) -> RunResult:
    """Run a plan and keep what it gives.

    Args:
        compiled: what to run.
        iterations: how many.
        folder: for metrics, samples and checkpoints of the trained models.
        seed: of every random draw.
        backend: `local` (this process) or `ray` (a process for each device).
        address: of a running Ray cluster to join; by default Ray is started for the run.
        pythons: interpreters of other environments, by engine; only with `ray`.
        bucket_mb: of weights that travel together, in MB; only with `ray`.
        checksums: whether readers of weights check what arrives; only with `ray`.
        initial: folders to load first weights from, by model.
        report: called with each finished iteration and its seconds.
        patience_s: with `ray`, seconds in which no worker gets on after which the run fails.

    Raises:
        CompileError: RG0606 for a backend that is not there, RG0513 for an engine that is
            missing or cannot do what the plan asks, else the cause of a failure.
    """
    if backend not in BACKENDS:
        raise fail("RG0606", f"there is no backend `{backend}`", help=(suggest(backend, BACKENDS),))
    installed = Installed(tuple((pythons or {}).items()), own=backend == "local")
    shapes = {name: (s.tied, s.experts > 0) for name, s in compiled.costs.shapes.items()}
    check_engines(compiled.graph, compiled.plan, compiled.cluster, installed, shapes)
    runner = importlib.import_module(BACKENDS[backend])
    more: dict[str, Any] = {}
    if backend == "ray":
        more = {"address": address, "pythons": pythons or {}, "patience_s": patience_s}
        more["transport"] = _transport(bucket_mb, checksums=checksums)
    with RunFolder(folder) as out:
        clock = _Clock()

        def finished(record: IterationRecord) -> None:
            seconds = clock.lap(record.age)
            out.write(record, seconds=seconds)
            report(record, seconds)

        done = runner.run(
            compiled.program, compiled.graph, compiled.plan, compiled.cluster,
            iterations=iterations, seed=seed, initial=initial, checkpoints=folder / "checkpoint",
            loaded=clock.start, report=finished, **more,
        )  # fmt: skip
    return RunResult(out.records, done.events, clock.total, done.memory)


def build(pipeline: Pipeline, parameters: Mapping[str, Any]) -> Graph:
    """The graph for some parameters, `rollout` and `train` among them; see `compile_pipeline`."""
    own = inspect.signature(pipeline.function).parameters
    engines = {r: str(parameters[r]) for r in ROLES if r in parameters and r not in own}
    graph = pipeline.build(**{n: v for n, v in parameters.items() if n not in engines})
    trained = graph.trainers()

    def named(model: ModelDef) -> ModelDef:
        fits = {"rollout": model.head == "lm", "train": model.name in trained}
        new = {role: name for role, name in engines.items() if fits[role]}
        return replace(model, engines=tuple({**dict(model.engines), **new}.items()))

    return replace(graph, models=tuple(map(named, graph.models))) if engines else graph


def _transport(bucket_mb: float | None, *, checksums: bool) -> Any:
    from rlinf_graph.backends.ray.weights import BUCKET, Transport

    bucket = BUCKET if bucket_mb is None else int(bucket_mb * 1e6)
    return Transport(bucket, checksums=checksums)


class _Clock:
    """Seconds of each iteration by the wall clock."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._began = self._last = time.perf_counter()

    def lap(self, ago: float) -> float:
        now = time.perf_counter() - ago
        seconds, self._last = now - self._last, now
        return seconds

    @property
    def total(self) -> float:
        return self._last - self._began
