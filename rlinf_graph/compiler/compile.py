"""From a graph to the best plan for a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rlinf_graph.compiler.check_engines import check_named_engines
from rlinf_graph.compiler.check_mismatch import check_mismatch
from rlinf_graph.compiler.check_plan import check_plan
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.kernels import Kernels
from rlinf_graph.compiler.cost.profile import Profile, check_profile, check_use
from rlinf_graph.compiler.lower import lower
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.compiler.schedule.search import Found, Search
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.program import Program
from rlinf_graph.nodes.installed import Installed

Objective = Literal["seconds", "cost"]


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
    profile: Profile | None = None,
    after: Callable[[str, Graph], None] | None = None,
    engines: Installed | None = None,
    objective: Objective = "seconds",
    kernels: Kernels | None = None,
) -> Compiled:
    """Check a graph and find its best plan.

    Args:
        graph: as built by a pipeline, or loaded.
        cluster: what to plan for.
        pins: devices and settings by node, in addition to the pipeline's own.
        profile: measurements that correct the cost model.
        after: called with the name of each pass and the graph that it left.
        objective: the least `seconds` of an iteration, or the least `cost` of a sample by the
            prices in the cluster file.
        engines: plan with those that are installed only; None for all that are known.
        kernels: measured ones, for sampling; None for closed forms alone.

    Raises:
        CompileError: with everything that is wrong with the graph, or why no plan exists;
            RG0408 for a profile of other hardware, versions or nodes.
    """
    checked = run_passes(graph, after)
    check_named_engines(checked, cluster, engines)
    costs = _costs(checked, cluster, profile, kernels)
    search = Search(checked, cluster, costs, pins=dict(pins or {}), engines=engines)
    if objective == "cost":
        _point, found = min(search.cheaper(), key=lambda pair: pair[0].price)
    else:
        found = search.run()
    check_mismatch(checked, found.best.plan, cluster)
    return Compiled(checked, cluster, found.best.plan, costs, found)


def accept_plan(
    graph: Graph, cluster: Cluster, plan: Plan, profile: Profile | None = None
) -> Compiled:
    """Take a given plan instead of searching.

    Raises:
        CompileError: with everything that is wrong with the graph, or with the plan for it; RG0408
            as in `compile_graph`.
    """
    checked = run_passes(graph)
    costs = _costs(checked, cluster, profile)
    accepted = check_mismatch(checked, check_plan(checked, plan, cluster), cluster)
    return Compiled(checked, cluster, accepted, costs)


def _costs(
    graph: Graph, cluster: Cluster, profile: Profile | None, kernels: Kernels | None = None
) -> CostModel:
    costs = CostModel(graph, cluster, profile, kernels=kernels)
    if profile is not None:
        check_profile(profile, cluster)
        check_use(profile, graph, used=costs.corrections.any_of(graph))
    return costs
