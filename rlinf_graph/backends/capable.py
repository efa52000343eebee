"""Whether the engines that a plan names can do what it asks of them, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import NodePlan, Plan
from rlinf_graph.nodes.engine import engine_class, engine_names


def check_engines(graph: Graph, plan: Plan) -> None:
    """Return when every engine can spread its node as planned.

    Raises:
        CompileError: RG0503, one diagnostic for each node and axis.
    """
    raise_errors(list(_refusals(graph, plan)))


def _refusals(graph: Graph, plan: Plan) -> Iterator[Diagnostic]:
    for leaf in plan.leaves():
        settings = plan.settings(leaf.node)
        if settings.engine not in engine_names():
            yield Diagnostic(
                "RG0503",
                f"engine `{settings.engine}` of `{leaf.node}` is not installed",
                graph.node(leaf.node).span,
                notes=(f"installed: {', '.join(engine_names())}",),
                help=("`rlinf-graph run` without --plan plans with what is installed",),
            )
            continue
        able = engine_class(settings.engine).capabilities.parallel
        if settings.recompute == "selective":
            yield Diagnostic(
                "RG0503",
                f"engine `{settings.engine}` cannot run `{leaf.node}` with selective recomputation",
                graph.node(leaf.node).span,
                notes=("such a plan can be made and explained, not run",),
                help=("a plan with recompute true or false",),
            )
        for axis, degree in _axes(settings).items():
            if degree > 1 and axis not in able:
                yield Diagnostic(
                    "RG0503",
                    f"engine `{settings.engine}` cannot run `{leaf.node}` with {axis} {degree}",
                    graph.node(leaf.node).span,
                    notes=(f"it spreads a model by: {', '.join(able)}",),
                    help=(f"a plan with {axis} 1; such a plan can be made and explained, not run",),
                )


def _axes(settings: NodePlan) -> dict[str, int]:
    """Axis → degree, of every axis that an engine has to know."""
    parallel = settings.parallel
    degrees = {axis: getattr(parallel, axis) for axis in ("dp", "tp", "pp", "vp", "cp", "ep")}
    return degrees if parallel.shard == "none" else degrees | {parallel.shard: parallel.dp}
