"""Sentences of the report: what limits a plan, why others are worse, what was assumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlinf_graph.compiler.explain.report import (
    Assumption,
    Bottleneck,
    Given,
    Margin,
    Rejected,
    Report,
    Resource,
    Row,
    SearchSummary,
)
from rlinf_graph.compiler.explain.units import Clock, gigabytes, off, percent, small

SAME = 5e-4
"""Plans nearer than this are as fast as each other."""

TIE = " tie"
"""Behind the difference of plans that cannot be told apart."""

FOLLOWS = 0.1
"""The next resource is named when it is at least this share of the first."""


def brief_names(names: Iterable[str]) -> dict[str, str]:
    """The first word of each name where that is enough to tell it from the others."""
    known = list(names)
    counts = Counter(name.split()[0] for name in known)
    return {n: n.split()[0] if counts[n.split()[0]] == 1 else n for n in known}


@dataclass(frozen=True)
class Words:
    """Turns findings into words.

    Attributes:
        clock: shows seconds.
        names: short names of nodes.
    """

    clock: Clock
    names: dict[str, str]

    def bottleneck(self, found: Bottleneck) -> str:
        """The limit and what follows it."""
        wait = f"devices wait {percent(found.waiting)}"
        if found.kind == "latency":
            return f"latency: {self._chain(found)}; {wait}; busiest {self._brief(found.busiest)}"
        text = self._full(found.busiest)
        if found.kind == "mixed":
            chain = f"; {self._chain(found)}" if found.chain else ""
            return f"no single one: {text}{chain}; {wait}"
        after = found.next if found.kind == "devices" or found.next is None else None
        if after and after.busy_s >= FOLLOWS * found.busiest.busy_s:
            text += f"; {self._brief(after)} follows"
        return f"{text}; {wait}" if found.waiting >= 0.005 else text

    def why(self, rejected: Rejected, best: float) -> str:
        """One line on another kind of plan."""
        found = rejected.bottleneck
        if found is None or rejected.seconds is None:
            return rejected.reason
        same = "as fast; " if abs(rejected.seconds / best - 1) < SAME else ""
        return same + self._short(found)

    def given(self, given: Given, seconds: float) -> str:
        """What was pinned and what that costs."""
        pins = " · ".join(f"{self.names.get(name, name)} {text}" for name, text in given.pins)
        if given.unpinned_s is None:
            return pins
        more = seconds / given.unpinned_s - 1
        costs = f"costs {percent(more)}" if more >= SAME else "costs nothing"
        return f"{pins}; {costs}: {self.clock.text(given.unpinned_s)} without"

    def margins(self, margins: Sequence[Margin]) -> str:
        """By how much each estimate may be off."""
        shown = [
            f"{self.names.get(made.node, made.node)} "
            f"{_factor(made.low, '¼')}..{_factor(made.high, '4')}"
            for made in margins
            if made.low is not None or made.high is not None
        ]
        others = [self.names.get(m.node, m.node) for m in margins if m.low is m.high is None]
        shown += [f"{', '.join(others)} ¼..4"] if others else []
        return f"stays within 2% of the best while one takes: {', '.join(shown)} × its estimate"

    def settings(self, row: Row) -> str:
        """What a row's columns do not say of its settings; empty when there is nothing."""
        said: list[str] = []
        if row.steps is not None and row.expected != row.steps:
            said.append(f"at most {row.steps} steps, {row.expected:g} expected")
        if row.groups > 1:
            said.append(f"its samples in {row.groups} groups, each in a step of its own")
        if row.optimizer_steps is not None:
            said.append(f"{row.optimizer_steps} optimizer step{'s' * (row.optimizer_steps > 1)}")
        if row.micro_batch is not None and row.optimizer_steps is None:
            said.append(f"at most {row.micro_batch} samples at once a replica")
        elif row.micro_batch is not None:
            said.append(f"micro-batches of {row.micro_batch} a replica")
        if row.recompute:
            some = "some " if row.recompute == "selective" else ""
            said.append(f"{some}activations recomputed")
        if row.offloaded:
            moved = self.clock.text(row.estimate.part("switch"))
            said.append(f"offloaded between turns (load and offload {moved})")
        if row.memory is not None and (taken := row.estimate.part("weights")):
            said.append(f"takes over the weights in training ({self.clock.text(taken)})")
        if row.fallback:
            said.append(f"not by measured kernels: {row.fallback}")
        return ", ".join(said)

    def _short(self, found: Bottleneck) -> str:
        wait = f"devices wait {percent(found.waiting)}"
        if found.kind == "latency":
            chain = self._arrows(found.chain)
            return f"latency: {chain} {self.clock.text(found.chain_s)}, {wait}"
        if found.kind == "mixed":
            return f"{self._brief(found.busiest)}, {wait}"
        parts = self._main(found.busiest)
        if len(parts) == 1:
            shown = f"{parts[0][0]} {self.clock.text(parts[0][1])}"
        else:
            shown = " + ".join(f"{name} {self.clock.number(s)}" for name, s in parts)
        return f"{found.busiest.where}: {shown}"

    def _full(self, resource: Resource) -> str:
        parts = self._main(resource)
        where, total = resource.where, self.clock.text(resource.busy_s)
        if len(parts) == 1:
            return f"{parts[0][0]} on {where}: {total}"
        shown = " + ".join(f"{name} {self.clock.number(seconds)}" for name, seconds in parts)
        return f"{where}: {shown} = {total}"

    def _brief(self, resource: Resource) -> str:
        names = ", ".join(name for name, _seconds in self._main(resource))
        return f"{resource.where} ({names}) {self.clock.text(resource.busy_s)}"

    def _main(self, resource: Resource) -> list[tuple[str, float]]:
        """The nodes that make up a lane's time; those below a fiftieth in one word."""
        total = resource.busy_s
        main = [(self.names.get(n, n), s) for n, s in resource.nodes if s >= 0.02 * total]
        rest = sum(s for _name, s in resource.nodes) - sum(s for _name, s in main)
        return [*main, ("others", rest)] if rest > 1e-9 * total else main

    def _chain(self, found: Bottleneck) -> str:
        apart = f" over {found.staleness + 1} iterations" if found.staleness else ""
        seconds = self.clock.text(found.chain_s)
        lag = f"at staleness {found.staleness}"
        return f"{self._arrows(found.chain)} takes {seconds}{apart} {lag}"

    def _arrows(self, chain: Sequence[str]) -> str:
        return " → ".join(self.names.get(name, name) for name in chain)


def _factor(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.2g}"


def assumption_text(made: Assumption) -> str:
    """Figure and origin."""
    if made.quantity == "host seconds a sample":
        figure = f"{small(made.mean)} of a core a sample"
    elif made.quantity == "launches not captured":
        figure = f"{made.mean:,.0f} of {made.limit or made.mean:,.0f} {made.quantity}"
    elif made.longest == made.mean:
        figure = f"{made.mean:,.0f} {made.quantity}"
    else:
        limit = f" of at most {made.limit:,.0f}" if made.limit else ""
        figure = f"{made.quantity} mean {made.mean:,.0f}{limit}, longest {made.longest:,.0f}"
    return f"{figure} ({made.origin})"


def engines_text(report: Report) -> str:
    """Which rows run with which engine, and why; empty where torch is all there is."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        if row.engine:
            why = dict(report.engine_reasons).get(row.name, "")
            rows.setdefault((row.engine, why), []).append(str(row.number))
    if set(rows) <= {("torch", "")}:
        return ""
    return " · ".join(
        f"{engine} {', '.join(numbers)}" + (f" ({why})" if why else "")
        for (engine, why), numbers in rows.items()
    )


def search_text(search: SearchSummary) -> str:
    """What the search may claim."""
    plans = f"{search.plans:,} plan{'s' if search.plans != 1 else ''} in closed form"
    took = f"{search.seconds:.1f} s" if search.seconds >= 0.05 else "<0.1 s"
    rest = f"{plans}, {search.simulated:,} simulated, the rest by bound, {took}"
    if search.proved:
        return f"(optimal in the modelled space: {rest})"
    return f"(at most {100 * search.gap:.2g}% above the optimum of the modelled space: {rest})"


def tie_text(report: Report) -> str:
    """What a tie is, what decided, and what would tell the plans apart."""
    width = max((other.width or 0.0 for other in report.rejected if other.tie), default=0.0)
    more = "runs of both tell" if report.profile else "`rlinf-graph profile` tells more"
    return f"tie: nearer than estimates can tell ({off(width)}), so the least decides; {more}"


def warnings(report: Report) -> list[str]:
    """What a plan that was given may have wrong."""
    return [
        f"{lane.where} needs {gigabytes(lane.peak)} GB, {gigabytes(lane.usable)} of "
        f"{gigabytes(lane.capacity)} usable: this plan does not fit in memory"
        for lane in report.lanes
        if lane.peak is not None and lane.usable is not None and lane.capacity is not None
        if lane.peak > lane.usable
    ]
