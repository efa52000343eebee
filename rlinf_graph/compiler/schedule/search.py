"""The best plan of a pipeline for a cluster: the solver's answers, simulated."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.schedule.conflict import conflict, smallest_conflict
from rlinf_graph.compiler.schedule.families import Infeasible
from rlinf_graph.compiler.schedule.frontier import Budget, Priced, frontier
from rlinf_graph.compiler.schedule.items import Items
from rlinf_graph.compiler.schedule.layouts import GRAIN, Layouts
from rlinf_graph.compiler.schedule.mends import Case, Tried
from rlinf_graph.compiler.schedule.pins import Pins, read_pins
from rlinf_graph.compiler.schedule.sensitivity import Tolerance
from rlinf_graph.compiler.schedule.shortage import no_plan_fits
from rlinf_graph.compiler.schedule.solve import Answer
from rlinf_graph.compiler.schedule.space import Simulated, Space
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError, fail
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Estimate, devices_of
from rlinf_graph.nodes.installed import Installed

SAME = 1e-9
ATTEMPT_S = 1.0
"""For each change that a shortage of memory suggests."""
FIRST = ((1, 1.0),)
"""Any plan is good enough."""


@dataclass(frozen=True)
class Found:
    """What the search leaves behind.

    Attributes:
        best: the chosen plan with its timeline.
        plans, simulated: how many were looked at, and how many of them were simulated.
        bound: what no other plan of the space can beat.
        search_s: seconds of the search.
        answer: the best plan as the solver has it.
    """

    best: Simulated
    plans: int
    simulated: int
    bound: float
    search_s: float
    answer: Answer
    _search: Search = field(repr=False, compare=False)
    _space: Space = field(repr=False, compare=False)

    @property
    def gap(self) -> float:
        """By how much, at most, another plan of the space can be better: a fraction."""
        return max(0.0, 1 - self.bound / self.best.seconds)

    @property
    def proved(self) -> bool:
        """Whether no other plan of the modelled space can be better."""
        return self.gap <= SAME

    @cached_property
    def families(self) -> tuple[Simulated, ...]:
        """The best plan of every other kind, as far as a moment finds it."""
        return self._space.families(self.best)

    @cached_property
    def tolerances(self) -> tuple[tuple[str, Tolerance], ...]:
        """By node, how far its seconds may be off before another plan would be the better one."""
        return self._space.tolerances(self.answer)

    @cached_property
    def unpinned(self) -> float | None:
        """Seconds of the best plan without pins; None where nothing is pinned."""
        if not self._space.items.pins:
            return None
        free = self._search.space(Pins()).solve(self._search.limit_s)
        return min(self.best.seconds, free.best[1]) if free.best else None

    def cheaper(self) -> tuple[tuple[Priced, Found], ...]:
        """Plans of which none found is both faster and cheaper; RG0405 without prices."""
        return self._search.cheaper()

    @property
    def items(self) -> Items:
        """What was planned, with its costs."""
        return self._space.items

    @property
    def used(self) -> Budget:
        """Devices of each node group that the plan uses."""
        cluster = self._search.cluster
        groups = [cluster.group_of(device) for device in devices_of(self.best.plan.placement)]
        return tuple(sum(g is group for g in groups) for group in cluster.groups)

    @property
    def engines(self) -> Installed | None:
        """That were planned with; None for all that are known."""
        return self._search.engines

    @property
    def pins(self) -> Pins:
        """What was given."""
        return self._space.items.pins

    @cached_property
    def infeasible(self) -> tuple[Infeasible, ...]:
        """Of modes without a plan, the placement that lacks least."""
        known = {self.best.plan.mode, *(other.plan.mode for other in self.families)}
        return self._space.infeasible(known)


@dataclass
class Search:
    """One search.

    Attributes:
        graph, cluster, costs: what to plan.
        limit_s: seconds after which the best so far is taken.
        pins: what is given, besides what the pipeline gives.
        grain: layouts that save less of a device's memory are not worth their time.
        engines: plan with those that are installed only; None for all that are known.
    """

    graph: Graph
    cluster: Cluster
    costs: CostModel
    limit_s: float = 8.0
    pins: Mapping[str, str] = field(default_factory=dict[str, str])
    grain: float = GRAIN
    engines: Installed | None = None

    def run(self) -> Found:
        """Search.

        Raises:
            CompileError: RG0401 when nothing fits, RG0402 and RG0407 for pins.
        """
        start = time.perf_counter()
        pins = read_pins(self.graph, self.cluster, self.pins)
        space = self.space(pins)
        found = self._within(space, start)
        if found is None:
            raise self._no_plan(pins, space)
        return found

    def cheaper(self) -> tuple[tuple[Priced, Found], ...]:
        """Plans of which none found is both faster and cheaper, fastest first.

        Raises:
            CompileError: as `run`; RG0405 for a cluster without prices.
        """
        if any(group.price_per_hour is None for group in self.cluster.groups):
            names = ", ".join(g.name for g in self.cluster.groups if g.price_per_hour is None)
            message = f"{self.cluster.name} has no price for node group {names}"
            help_text = ("price_per_hour = 2.5 in [[node_group]] of a cluster file",)
            raise fail("RG0405", message, help=help_text)
        items, made = self.run().items, dict[Budget, Found]()

        def best(budget: Budget) -> tuple[Budget, float] | None:
            found = self._within(Space(items, budget), time.perf_counter())
            if found is None:
                return None
            made[budget] = found
            return found.used, found.best.seconds

        points = frontier(self.cluster, best)
        return tuple((point, made[point.budget]) for point in points)

    def _within(self, space: Space, start: float) -> Found | None:
        """The best plan of a space; None where it has none."""
        solved = space.solve(self.limit_s)
        if solved.best is None or solved.best[1] == float("inf"):
            return None
        best, seconds = space.simulated(solved.best[0]), solved.best[1]
        if best is None:
            raise ValueError("the best plan has no devices")
        bound = min(solved.bound, seconds)
        return Found(
            best=self._estimated(best, bound),
            plans=solved.plans,
            simulated=len(solved.judged),
            bound=bound,
            search_s=time.perf_counter() - start,
            answer=solved.best[0],
            _search=self,
            _space=space,
        )

    def space(self, pins: Pins) -> Space:
        """The plans that pins allow."""
        layouts = Layouts(
            self.graph, self.cluster, self.costs, pins.nodes, self.engines, self.grain
        )
        items = Items(self.graph, self.cluster, self.costs, layouts, pins)
        return Space(items)

    def _no_plan(self, pins: Pins, space: Space) -> CompileError:
        case, unable = Case(self.graph, self.cluster, pins), space.unable()
        names = frozenset[str]()
        if not any(code == "RG0406" for code, _why in unable.values()):
            names = smallest_conflict(pins, lambda some: self._possible(case, some))
        shortages = space.shortages()
        if names:
            lacking = [found for found in shortages.values() if found.short]
            nearest = min(lacking, key=lambda f: f.short.over if f.short else 0.0, default=None)
            why = (nearest.reason,) if nearest else ()
            return conflict(self.graph, self.cluster.name, pins, names, why)
        return no_plan_fits(case, shortages, unable, self._attempt)

    def _possible(self, case: Case, pins: Pins) -> bool:
        return self._attempt(replace(case, pins=pins)).fits

    def _attempt(self, case: Case) -> Tried:
        """Whether something fits in another case; its time, where a second is enough for it."""
        same = case.graph is self.graph and case.cluster is self.cluster
        costs = self.costs if same else self.costs.elsewhere(case.graph, case.cluster)
        search = replace(self, graph=case.graph, cluster=case.cluster, costs=costs)
        space = search.space(case.pins)
        solved = space.solve(ATTEMPT_S, FIRST)
        if solved.best is None or solved.best[1] == float("inf"):
            lacks = (i.short.over for i in space.shortages().values() if i.short)
            return Tried(fits=False, over=min(lacks, default=float("inf")))
        return Tried(fits=True, seconds=solved.best[1])

    def _estimated(self, best: Simulated, bound: float) -> Simulated:
        proved = bound >= best.seconds * (1 - SAME)
        profile = self.costs.profile.file if self.costs.profile else None
        estimate = Estimate(iteration_s=best.seconds, bound_s=bound, proved=proved, profile=profile)
        plan = best.plan.model_copy(update={"estimate": estimate})
        return replace(best, plan=plan)
