"""Whether the engines that a plan names can do what it asks of them, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.plan import NodePlan, Plan
from rlinf_graph.nodes.capabilities import Layout, Support, layout_refusal
from rlinf_graph.nodes.installed import packages_of
from rlinf_graph.nodes.registry import capabilities_of, engine_names


def check_engines(
    graph: Graph, plan: Plan, cluster: Cluster, pythons: Mapping[str, str] | None = None
) -> None:
    """Return when every engine is there and can spread its node as planned.

    Args:
        graph: of the plan.
        plan: names the engines.
        cluster: says on which kind of device each runs.
        pythons: interpreters that engines run in, by engine.

    Raises:
        CompileError: RG0503, a diagnostic for each node.
    """
    found = [
        diagnostic
        for leaf in plan.leaves()
        for kind in [cluster.group_of(leaf.devices[0]).device.kind]
        for diagnostic in _refusals(graph.node(leaf.node), plan.settings(leaf.node), kind, pythons)
    ]
    raise_errors(found)


def _refusals(
    node: Node, settings: NodePlan, kind: str, pythons: Mapping[str, str] | None
) -> Iterator[Diagnostic]:
    name = settings.engine
    if name not in engine_names():
        yield Diagnostic(
            "RG0503",
            f"there is no engine `{name}`, which the plan names for `{node.name}`",
            node.span,
            notes=(f"known: {', '.join(engine_names())}",),
            help=("`rlinf-graph run` without --plan plans with what is installed",),
        )
        return
    support = capabilities_of(name).kinds.get(kind)
    if support is None:
        yield Diagnostic("RG0503", f"engine `{name}` of `{node.name}` does not run on {kind}s",
                         node.span)  # fmt: skip
        return
    yield from _absent(node, name, support, (pythons or {}).get(name))
    if refusal := layout_refusal(support, Layout(settings)):
        yield Diagnostic(
            "RG0503",
            f"engine `{name}` cannot run `{node.name}` as planned: {refusal}",
            node.span,
            notes=(
                f"on {kind}s it spreads a model by: {', '.join(support.axes)}",
                "such a plan can be made and explained, not run",
            ),
        )


def _absent(node: Node, name: str, support: Support, python: str | None) -> Iterator[Diagnostic]:
    """What the engine needs and the interpreter that it runs in does not have."""
    lacking = [package for package in packages_of(support, python) if not package.fits]
    if lacking:
        where = f" in {python}" if python else ""
        yield Diagnostic(
            "RG0503",
            f"engine `{name}` of `{node.name}` cannot start: "
            + "; ".join(f"{package}{where}" for package in lacking),
            node.span,
            notes=support.notes,
            help=(
                support.install,
                f"--python {name}=PATH, for an interpreter of another environment that has it",
                "`rlinf-graph run` without --plan plans with what is installed",
            ),
        )
