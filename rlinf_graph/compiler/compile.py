"""From a graph to the best plan for a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from rlinf_graph.compiler.check_plan import check_plan
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.lower import lower
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.compiler.schedule.search import Found, Search
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.program import Program


@dataclass(frozen=True)
class Compiled:
    """A pipeline ready to run.

    Attributes:
        graph: after the passes.
        cluster: what it was planned for.
        plan: where, how and in which order each node runs.
        costs: the cost model that was asked.
        found: what the search left behind; None for a plan that was given.
    """

    graph: Graph
    cluster: Cluster
    plan: Plan
    costs: CostModel
    found: Found | None = None

    @cached_property
    def program(self) -> Program:
        """The plan as instructions."""
        return lower(self.graph, self.plan)


def compile_graph(
    graph: Graph,
    cluster: Cluster,
    *,
    pins: Mapping[str, str] | None = None,
    after: Callable[[str, Graph], None] | None = None,
) -> Compiled:
    """Check a graph and find its best plan.

    Args:
        graph: as built by a pipeline, or loaded.
        cluster: what to plan for.
        pins: devices or tensor parallelism by node, in addition to the pipeline's own.
        after: called with the name of each pass and the graph that it left.

    Raises:
        CompileError: with everything that is wrong with the graph, or why no plan exists.
    """
    checked = run_passes(graph, after)
    costs = CostModel(checked, cluster)
    found = Search(checked, cluster, costs, pins=dict(pins or {})).run()
    return Compiled(checked, cluster, found.best.plan, costs, found)


def accept_plan(graph: Graph, cluster: Cluster, plan: Plan) -> Compiled:
    """Take a given plan instead of searching.

    Raises:
        CompileError: with everything that is wrong with the graph, or with the plan for it.
    """
    checked = run_passes(graph)
    return Compiled(
        checked, cluster, check_plan(checked, plan, cluster), CostModel(checked, cluster)
    )
