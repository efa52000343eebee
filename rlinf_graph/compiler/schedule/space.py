"""The plans of a pipeline on a cluster: solved in closed form, placed and simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.compiler.lower import lower
from rlinf_graph.compiler.schedule.candidate import Candidate, to_plan
from rlinf_graph.compiler.schedule.families import MODES, Infeasible, Kind, least_lacking
from rlinf_graph.compiler.schedule.instance import Counts, Instance, bits
from rlinf_graph.compiler.schedule.items import Cut, Items
from rlinf_graph.compiler.schedule.placing import Placer
from rlinf_graph.compiler.schedule.rows import Rows
from rlinf_graph.compiler.schedule.sensitivity import Tolerance, tolerances
from rlinf_graph.compiler.schedule.solve import Answer, Solved, Solver
from rlinf_graph.compiler.schedule.tree import Tree
from rlinf_graph.compiler.simulate import simulate
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.timeline import Event, period

SETTLED = 1e-3
MOST_ITERATIONS = 64
ENOUGH = ((16_000, 1e-3), (64_000, 5e-3), (256_000, 2e-2))
"""Effort that has been made, and a gap that is small enough then: about 0.05, 0.3 and 1.2 s."""
FAMILY_ENOUGH, FAMILY_S, FAMILY_BANDS = ((2_000, 1e-3), (32_000, 2e-2)), 4.0, 160
"""Likewise for a kind that is shown only as rejected; seconds and bands for it."""


@dataclass(frozen=True)
class Simulated:
    """A candidate with its timeline."""

    candidate: Candidate
    plan: Plan
    events: tuple[Event, ...]
    iterations: int
    seconds: float


@dataclass
class Space:
    """The plans of a graph on a cluster, or on a part of its devices, and simulations of them."""

    items: Items
    budget: tuple[int, ...] | None = None
    _done: dict[Answer, Simulated | None] = field(default_factory=dict[Answer, Simulated | None])

    @cached_property
    def instances(self) -> list[tuple[Cut, Instance]]:
        """The problem, for every way to cut samples that the batches allow."""
        made = [(cut, self.items.instance(cut)) for cut in self.items.cuts()]
        found = [(cut, instance) for cut, instance in made if instance is not None]
        if self.budget is None:
            return found
        return [(cut, replace(instance, available=self.budget)) for cut, instance in found]

    def solve(self, limit_s: float, enough: Sequence[tuple[int, float]] = ENOUGH) -> Solved:
        """Search all of it."""
        instances = [instance for _cut, instance in self.instances]
        return Solver(
            instances,
            self.seconds,
            enough=enough,
            limit_s=limit_s,
            keep=self._keep if self._limited else None,
        ).run()

    @cached_property
    def _limited(self) -> bool:
        """Whether pins say more than which choices there are."""
        items = range(len(self.items.names))
        given = [self.items.stays(item) is not None or self.items.pin(item) for item in items]
        return self.items.pins.plan.mode is not None or any(given)

    def _keep(self, instance: Instance, rows: Rows) -> NDArray[np.bool_]:
        """The rows that pins of devices, of the mode and of what stays on devices allow."""
        mode = self.items.pins.plan.mode
        needs = self._needs(instance, rows, rows.tree)
        kept = (needs <= np.asarray(instance.available)).all(axis=1)
        if mode:
            kept &= Kind(mode, 0).keeps(instance, rows)
        for item in range(len(self.items.names)):
            stays = self.items.stays(item)
            if stays is not None:
                kept &= rows.away[:, item] != stays
        return np.asarray(kept, np.bool_)

    def _needs(self, instance: Instance, rows: Rows, tree: Tree) -> Counts:
        """Devices that a part of each row takes; of a turn at least those of all its pins."""
        if tree.kind == "leaf":
            item = bits(tree.items)[0]
            return instance.choices[item].devices[rows.picks[:, item]]
        parts = np.stack([self._needs(instance, rows, part) for part in tree.parts])
        if tree.kind == "split":
            return parts.sum(axis=0)
        return np.maximum(parts.max(axis=0), self.items.pinned(tree.items))

    def seconds(self, answer: Answer) -> float:
        """Of an iteration, by simulation; infinite for a plan that finds no devices."""
        done = self.simulated(answer)
        return done.seconds if done else float("inf")

    def simulated(self, answer: Answer) -> Simulated | None:
        """The steady state of a plan."""
        if answer not in self._done:
            candidate = self.candidate(answer)
            self._done[answer] = self.steady(candidate) if candidate else None
        return self._done[answer]

    def candidate(self, answer: Answer) -> Candidate | None:
        """A plan with its devices; None where it finds none."""
        return Placer(self.items, self.instances[answer.instance][0], answer).candidate()

    def steady(self, candidate: Candidate) -> Simulated:
        """The steady state of a candidate."""
        graph, cluster, costs = self.items.graph, self.items.cluster, self.items.costs
        plan = to_plan(candidate, graph, cluster)
        program = lower(graph, plan)
        iterations = 4 * (1 + candidate.staleness)
        while True:
            events = simulate(program, graph, plan, cluster, costs, iterations)
            seconds = period(events, iterations)
            settled = abs(seconds - period(events, iterations - 1)) <= SETTLED * seconds
            if settled or iterations >= MOST_ITERATIONS:
                return Simulated(candidate, plan, tuple(events), iterations, seconds)
            iterations *= 2

    def tolerances(self, answer: Answer) -> tuple[tuple[str, Tolerance], ...]:
        """By node, how far its seconds may be off before a plan would not be the best any more."""
        instances = [instance for _cut, instance in self.instances]
        found = tolerances(instances, answer, self._keep if self._limited else None)
        return tuple((self.items.names[tolerance.item], tolerance) for tolerance in found)

    def families(self, best: Simulated) -> tuple[Simulated, ...]:
        """The best of every other kind than a plan's, best first."""
        lags = sorted({0, 1, best.candidate.staleness, *self.items.lags()[-1:]})
        kinds = [Kind("collocated", 0)]
        kinds += [Kind(m, lag) for m in MODES[1:] for lag in lags if lag in self.items.lags()]
        own = Kind(*best.candidate.family)
        found = [made for kind in kinds if kind != own and (made := self._best_of(kind))]
        return tuple(sorted(found, key=lambda made: (made.seconds, made.candidate.label())))

    def _best_of(self, kind: Kind) -> Simulated | None:
        lags = (kind.staleness,)
        solved = Solver(
            [replace(instance, lags=lags) for _cut, instance in self.instances],
            self.seconds,
            enough=FAMILY_ENOUGH,
            limit_s=FAMILY_S,
            keep=kind.keeps,
            most_bands=FAMILY_BANDS,
        ).run()
        if solved.best is None or solved.best[1] == float("inf"):
            return None
        return self.simulated(solved.best[0])

    def infeasible(self, known: set[str]) -> tuple[Infeasible, ...]:
        """Of modes without a plan, the placement that lacks least memory."""
        made = (least_lacking(self.items, mode) for mode in MODES if mode not in known)
        return tuple(lacking for lacking in made if lacking is not None)

    def unable(self) -> dict[str, tuple[str, str]]:
        """Nodes that have no layout, with a code and the reason."""
        names = (name for item in range(len(self.items.names)) for name in self.items.nodes(item))
        made = {name: self.items.layouts.none_because(name) for name in names}
        return {name: why for name, why in made.items() if why is not None}

    def shortages(self) -> dict[str, Infeasible]:
        """By mode, the placement that lacks least."""
        return {lacking.mode: lacking for lacking in self.infeasible(set())}
