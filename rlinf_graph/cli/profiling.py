"""Measure a pipeline's nodes and make a profile of it: where measuring and fitting meet."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlinf_graph.cli.api import build
from rlinf_graph.compiler.check_engines import check_named_engines
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost import profile as profiles
from rlinf_graph.compiler.cost.fit import Fitted, fit_all
from rlinf_graph.compiler.cost.profile import Machine, Profile
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.dsl.pipeline import Pipeline
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.graph_file import digest
from rlinf_graph.ir.measurement import Measurement
from rlinf_graph.nodes.installed import Installed
from rlinf_graph.nodes.plugins import load_plugins


@dataclass(frozen=True)
class Profiled:
    """A profile with what it was fitted to."""

    profile: Profile
    fits: tuple[Fitted, ...]


def profile_pipeline(
    pipeline: Pipeline | Graph,
    cluster: str | Cluster = "local",
    *,
    parameters: Mapping[str, Any] | None = None,
    initial: Mapping[str, str] | None = None,
    seed: int = 0,
    address: str | None = None,
    pythons: Mapping[str, str] | None = None,
    report: Callable[[Measurement], None] = lambda _made: None,
) -> Profiled:
    """Measure each node of a pipeline alone, at a few sizes, on all devices of a machine.

    Args:
        pipeline: whose nodes are measured.
        cluster: `local`, or a description of this machine.
        parameters: of the pipeline.
        initial: folders to load first weights from, by model.
        seed: of every random draw.
        address: of a running Ray cluster; by default one is started here, and ended.
        pythons: interpreters of other environments, by engine.
        report: called with each measurement.

    Raises:
        CompileError: with everything that is wrong with the pipeline, or the cause of a failure.
    """
    from rlinf_graph.backends.ray.measure import measure_on_workers

    load_plugins()
    machines = load_cluster(cluster) if isinstance(cluster, str) else cluster
    graph = pipeline if isinstance(pipeline, Graph) else build(pipeline, parameters or {})
    checked = run_passes(graph)
    check_named_engines(checked, machines, Installed(tuple((pythons or {}).items())))
    costs = CostModel(checked, machines)
    made = measure_on_workers(
        checked,
        machines,
        seed=seed,
        initial=initial,
        address=address,
        pythons=pythons,
        report=report,
    )
    fits = tuple(fit_all(costs, made))
    profile = Profile(
        pipeline=checked.name,
        graph=digest(checked),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=Machine.of(machines.group_of(0)),
        versions=profiles.versions_here(),
        corrections=tuple(fit.correction for fit in fits),
        measurements=tuple(made),
    )
    return Profiled(profile, fits)


def fit_lines(fits: tuple[Fitted, ...]) -> list[str]:
    """A table of what was measured, estimated and fitted."""
    head = ("node", "kind", "sizes", "measured s", "estimate s", "overhead s", "factor",
            "residual")  # fmt: skip
    rows = [head, *map(_row, fits)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return [
        "  ".join(
            text.ljust(size) if i < 2 else text.rjust(size)
            for i, (text, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(fit: Fitted) -> tuple[str, ...]:
    made, (last, estimate) = fit.correction, fit.pairs[-1]
    return (
        last.node,
        made.kind,
        str(len(fit.pairs)),
        f"{last.median:.3g}",
        f"{estimate:.3g}",
        f"{made.overhead_s:.2g}",
        f"{made.factor:.3g}",
        f"{made.residual:.0%}",
    )
