"""Dynamic sampling: try prompts until as many groups are found as training wants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from rlinf_graph.dsl.builder import Builder, current_builder, user_frame
from rlinf_graph.dsl.loop import unroll
from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.batches import Demand, Rewards, Rollouts
from rlinf_graph.ir.graph import Node
from rlinf_graph.ir.span import Span
from rlinf_graph.nodes.filter import demand, settle

Attempt = Callable[[Demand], tuple[Rollouts, Rewards]]


def refill(
    attempt: Attempt,
    *,
    groups: int,
    rounds: int,
    acceptance: float,
    samples: int | None = None,
) -> tuple[Rollouts, Rewards]:
    """Repeat a part of the pipeline that drops groups until enough of them are found.

    A round asks for what the rounds before have not found. When all are, the rounds that are left
    do nothing, and the data source stays where it is. Where the rounds do not suffice, the batch is
    smaller and so are its last minibatches; one without samples changes no gradient.

    Args:
        attempt: from what is wanted to samples and their rewards. Its data source takes it:
            `rl.dataset(..., batch=64, wanted=wanted)`.
        groups: to be found in an iteration.
        rounds: at most.
        acceptance: the share of groups that an attempt keeps, to plan with: as many rounds are
            expected as find the groups if each tries as many as the first. Does not change what is
            sampled.
        samples: of a group, at most; by default as many as a rollout in `attempt` gives.

    Returns:
        `groups * samples` samples, in the order in which they were found, less those that were not.
    """
    builder = current_builder()
    if builder is None:
        return _run(attempt, groups, rounds, samples)
    span = Span.of_frame(user_frame())
    _require(builder, (groups, rounds, acceptance, samples), span)
    if builder.diagnostics:
        return _unknown()
    before, sources = len(builder.nodes), list[_Source]()

    def tried(wanted: Demand) -> tuple[Demand, Rollouts, Rewards]:
        made: Any = attempt(wanted)
        if not builder.diagnostics:
            _require_made(builder, attempt, made, span)
        if builder.diagnostics:
            return wanted, *_unknown()
        inside = builder.nodes[before + 1 :]
        size = samples or _samples_of(builder, inside, span)
        source = _source_of(builder, inside, span)
        sources.append(source)
        return settle(
            wanted, *made, groups=groups, samples=size,
            batch=source.batch, tries=source.tries, acceptance=acceptance,
        )  # fmt: skip

    tried.__name__ = getattr(attempt, "__name__", "attempt")
    found: Any = unroll(tried, start=demand(groups), length=rounds)
    if builder.diagnostics:
        return _unknown()
    _expect(builder, min(rounds, math.ceil(groups / (sources[0].first(groups) * acceptance))))
    return found[1:]


@dataclass(frozen=True)
class _Source:
    """What an attempt begins with: groups it tries at most, and for each that is wanted."""

    batch: int | None = None
    tries: float = 1.0

    def first(self, wanted: int) -> int:
        """Groups that are tried when so many are wanted."""
        tried = math.ceil(wanted * self.tries)
        return tried if self.batch is None else min(self.batch, tried)


def _expect(builder: Builder, rounds: int) -> None:
    """Plan with that many rounds of the loop that was built last."""
    region = builder.nodes[-1]
    if region.loop is not None:
        builder.nodes[-1] = replace(region, loop=replace(region.loop, expected=float(rounds)))


def _unknown() -> tuple[Rollouts, Rewards]:
    """What stands for the result where an error has been reported."""
    return Rollouts.symbol(Source("?")), Rewards.symbol(Source("?", 1))


def _require(builder: Builder, given: tuple[Any, ...], span: Span) -> None:
    groups, rounds, acceptance, samples = given
    counts = {"groups": groups, "rounds": rounds, "samples": 1 if samples is None else samples}
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            message = f"`{name}` of rl.refill is {value!r}; it has to be at least 1"
            builder.report("RG0104", message, span.argument(name))
    if not isinstance(acceptance, int | float) or not 0 < acceptance <= 1:
        message = f"`acceptance` of rl.refill is {acceptance!r}; it lies in (0, 1]"
        builder.report("RG0104", message, span.argument("acceptance"))


def _require_made(builder: Builder, attempt: Attempt, made: Any, span: Span) -> None:
    if isinstance(made, tuple):
        kinds = tuple(type(part) for part in cast("tuple[Any, ...]", made))
        if len(kinds) == 2 and issubclass(kinds[0], Rollouts) and issubclass(kinds[1], Rewards):
            return
        shown = ", ".join(kind.__name__ for kind in kinds)
    else:
        shown = type(made).__name__
    name = getattr(attempt, "__name__", "attempt")
    message = f"`{name}` returns {shown}; an attempt returns Rollouts and Rewards"
    builder.report("RG0206", message, span.argument("attempt"))


def _samples_of(builder: Builder, inside: list[Node], span: Span) -> int:
    """Samples of a group: as many as the rollouts of the attempt give."""
    given = [
        int(node.option("keep") or node.option("samples"))
        for node in inside
        if node.type == "rollout"
    ]
    if not given:
        message = "the attempt of rl.refill has no rollout that tells the samples of a group"
        builder.report("RG0104", message, span, help=("rl.refill(..., samples=8)",))
    return max(given, default=1)


def _source_of(builder: Builder, inside: list[Node], span: Span) -> _Source:
    """The source of the attempt, as far as it is one of this package."""
    region = builder.regions[-1]
    asking = [node for node in inside if any(i.source.node == region for i in node.inputs)]
    if not asking:
        builder.report(
            "RG0206",
            "the attempt of rl.refill does not use what is wanted: each round would try anew as "
            "many prompts as the first",
            span.argument("attempt"),
            help=("rl.dataset(..., batch=64, wanted=wanted)",),
        )
    known = [node for node in asking if node.type == "dataset"]
    return next((_Source(n.option("batch"), n.option("tries")) for n in known), _Source())


def _run(
    attempt: Attempt, groups: int, rounds: int, samples: int | None
) -> tuple[Rollouts, Rewards]:
    """The rounds on values, outside of a pipeline."""
    sizes = [] if samples is None else [samples]

    def tried(wanted: Demand) -> tuple[Demand, Rollouts, Rewards]:
        rollouts, rewards = attempt(wanted)
        if len(rollouts) and not sizes:
            sizes.append(int(rollouts.group.unique(return_counts=True)[1].max()))
        return settle(wanted, rollouts, rewards, groups=groups, samples=[*sizes, 1][0])

    return unroll(tried, start=demand(groups), length=rounds)[1:]
