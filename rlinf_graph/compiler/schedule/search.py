"""The best plan: candidates in the order of their bounds, simulated until no bound is lower."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.lower import cadence, is_host, lower, works
from rlinf_graph.compiler.schedule.bound import Bounds
from rlinf_graph.compiler.schedule.candidate import Candidate, host_processes, to_plan
from rlinf_graph.compiler.schedule.layouts import GRAIN, Layouts
from rlinf_graph.compiler.schedule.mends import Case, Tried
from rlinf_graph.compiler.schedule.pins import Pin, read_pins
from rlinf_graph.compiler.schedule.shortage import no_plan_fits
from rlinf_graph.compiler.schedule.space import Infeasible, Space
from rlinf_graph.compiler.simulate import simulate
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Estimate, Plan, devices_of
from rlinf_graph.ir.timeline import Event, period

SAME = 1e-9
ATTEMPT_S = 1.0
"""For each change that a shortage of memory suggests."""
SETTLED = 1e-3
MOST_ITERATIONS = 64
TRIES = 4
"""Candidates simulated of a family that is shown only as rejected."""


@dataclass(frozen=True)
class Simulated:
    """A candidate with its timeline."""

    candidate: Candidate
    plan: Plan
    events: tuple[Event, ...]
    iterations: int
    seconds: float


@dataclass(frozen=True)
class Found:
    """What the search leaves behind.

    Attributes:
        best: the chosen plan with its timeline.
        families: the best simulated plan of every other mode and staleness.
        infeasible: by mode, the placement that lacked least.
        plans, simulated: how many candidates there were, and how many had to be simulated.
        bound: of the best candidate that was not simulated; the best's own seconds if none.
        complete: whether every candidate of the space was looked at.
        search_s: seconds of the search.
    """

    best: Simulated
    families: tuple[Simulated, ...]
    infeasible: tuple[Infeasible, ...]
    plans: int
    simulated: int
    bound: float
    complete: bool
    search_s: float

    @property
    def gap(self) -> float:
        """By how much, at most, another plan of the space can be better: a fraction."""
        return max(0.0, 1 - self.bound / self.best.seconds)

    @property
    def proved(self) -> bool:
        """Whether no other plan of the modelled space can be better."""
        return self.complete and self.gap <= SAME


@dataclass
class Search:
    """One search. `limit_s` bounds the enumeration and the simulation, each.

    Layouts that save less than `grain` of a device's memory are not worth their time.
    """

    graph: Graph
    cluster: Cluster
    costs: CostModel
    limit_s: float = 8.0
    pins: Mapping[str, str] = field(default_factory=dict[str, str])
    grain: float = GRAIN

    def run(self) -> Found:
        """Search.

        Raises:
            CompileError: RG0401 when nothing fits, RG0402 and RG0407 for pins.
        """
        start = time.perf_counter()
        pins = read_pins(self.graph, self.cluster, self.pins)
        candidates, infeasible, complete = self._enumerate(pins, start + self.limit_s)
        if not candidates:
            case = Case(self.graph, self.cluster, pins)
            raise no_plan_fits(case, infeasible, self._attempt)
        done, bound = self._simulate(candidates, time.perf_counter() + self.limit_s)
        best = min(done, key=_order)
        done += self._families(candidates, done)
        families = {s.candidate.family: s for s in sorted(done, key=_order, reverse=True)}
        families.pop(best.candidate.family, None)
        others = sorted(families.values(), key=_order)
        return Found(
            best=self._estimated(best, min(bound, best.seconds), complete),
            families=tuple(others),
            infeasible=tuple(infeasible.values()),
            plans=len(candidates),
            simulated=len(done),
            bound=min(bound, best.seconds),
            complete=complete,
            search_s=time.perf_counter() - start,
        )

    def _enumerate(
        self, pins: dict[str, Pin], deadline: float
    ) -> tuple[list[Candidate], dict[str, Infeasible], bool]:
        layouts = Layouts(self.graph, self.cluster, self.costs, pins, self.grain)
        bounds = Bounds(self.graph, self._sync_seconds, self._host_seconds())
        candidates: list[Candidate] = []
        infeasible: dict[str, Infeasible] = {}
        for found in Space(self.graph, self.cluster, layouts, bounds, pins).candidates():
            if isinstance(found, Infeasible):
                known = infeasible.get(found.mode)
                if known is None or _lack(found) < _lack(known):
                    infeasible[found.mode] = found
            else:
                candidates.append(found)
            if time.perf_counter() > deadline:
                return candidates, infeasible, False
        return candidates, infeasible, True

    def _attempt(self, case: Case) -> Tried:
        """Whether something fits in another case; its time, where a second is enough for it."""
        costs = CostModel(case.graph, case.cluster, self.costs.profile)
        search = replace(self, graph=case.graph, cluster=case.cluster, costs=costs)
        found, infeasible, complete = search._enumerate(
            dict(case.pins), time.perf_counter() + ATTEMPT_S
        )
        if not found:
            over = min((_lack(i) for i in infeasible.values()), default=float("inf"))
            return Tried(fits=False, over=over)
        if not complete:
            return Tried(fits=True)
        best = min(found, key=lambda c: (c.bound, c.staleness, c.chunks, c.label()))
        return Tried(fits=True, seconds=search.simulated(best).seconds)

    def _simulate(
        self, candidates: list[Candidate], deadline: float
    ) -> tuple[list[Simulated], float]:
        """Simulate in the order of bounds; the bound of the first one left out."""
        ordered = sorted(candidates, key=lambda c: (c.bound, c.staleness, c.chunks, c.label()))
        done: list[Simulated] = []
        best = float("inf")
        for candidate in ordered:
            if candidate.bound >= best * (1 - SAME) or (done and time.perf_counter() > deadline):
                return done, candidate.bound
            done.append(self.simulated(candidate))
            best = min(best, done[-1].seconds)
        return done, best

    def _families(self, candidates: list[Candidate], done: list[Simulated]) -> list[Simulated]:
        """The best of each family that was pruned, or nearly: a few by bound are simulated."""
        seen = {s.candidate.family for s in done}
        by_family: dict[tuple[str, int], list[Candidate]] = {}
        for candidate in sorted(candidates, key=lambda c: (c.bound, c.chunks, c.label())):
            if candidate.family not in seen:
                by_family.setdefault(candidate.family, []).append(candidate)
        made: list[Simulated] = []
        for family in by_family.values():
            best = float("inf")
            for candidate in family[:TRIES]:
                if candidate.bound >= best:
                    break
                made.append(self.simulated(candidate))
                best = min(best, made[-1].seconds)
        return made

    def simulated(self, candidate: Candidate) -> Simulated:
        """The steady state of a candidate."""
        plan = to_plan(candidate, self.graph, self.cluster)
        program = lower(self.graph, plan)
        iterations = 4 * (1 + candidate.staleness)
        while True:
            events = simulate(program, self.graph, plan, self.cluster, self.costs, iterations)
            seconds = period(events, iterations)
            settled = abs(seconds - period(events, iterations - 1)) <= SETTLED * seconds
            if settled or iterations >= MOST_ITERATIONS:
                return Simulated(candidate, plan, tuple(events), iterations, seconds)
            iterations *= 2

    def _estimated(self, best: Simulated, bound: float, complete: bool) -> Simulated:
        proved = complete and bound >= best.seconds * (1 - SAME)
        profile = self.costs.profile.file if self.costs.profile else None
        estimate = Estimate(iteration_s=best.seconds, bound_s=bound, proved=proved, profile=profile)
        plan = best.plan.model_copy(update={"estimate": estimate})
        return Simulated(best.candidate, plan, best.events, best.iterations, best.seconds)

    def _host_seconds(self) -> float:
        """Of the busiest host node in an iteration."""
        group, processes = self.cluster.groups[0], host_processes(self.cluster)
        return max(
            (
                self.costs.host(node, processes, group).seconds / cadence(self.graph, node)
                for node in self.graph.nodes
                if works(node) and is_host(node)
            ),
            default=0.0,
        )

    def _sync_seconds(self, model: str, source: tuple[int, ...], target: tuple[int, ...]) -> float:
        method = "copy" if set(target) <= set(source) else "broadcast"
        return self.costs.sync(model, source, target, method)[0]


def _order(done: Simulated) -> tuple[float, int, int, int, str]:
    """Better plans first; of equal ones the fresher, smaller, simpler, by no chance."""
    shown, candidate = float(f"{done.seconds:.9g}"), done.candidate
    used = len(devices_of(candidate.placement))
    return shown, candidate.staleness, used, candidate.chunks, candidate.label()


def _lack(found: Infeasible) -> float:
    return found.short.over if found.short else float("inf")
