"""By how much each cost may be off before another plan would have been the better choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlinf_graph.compiler.schedule.flow import Flow
from rlinf_graph.compiler.schedule.instance import Instance
from rlinf_graph.compiler.schedule.rows import Rows
from rlinf_graph.compiler.schedule.solve import Answer, Keep, Solver
from rlinf_graph.compiler.schedule.tree import Tree

MARGIN = 0.02
"""A plan counts as the best one as long as no other is better by more."""

FARTHEST = 4.0
"""Costs are tried from a fourth to four times the estimate."""

HALVINGS = 5
LIMIT_S = 0.3
"""For each cost that is tried."""


@dataclass(frozen=True)
class Tolerance:
    """The factors of an item's seconds within which a plan stays the best.

    Attributes:
        item: its number.
        low, high: None where a fourth, or four times as much, changes nothing.
    """

    item: int
    low: float | None
    high: float | None


def tolerances(
    instances: Sequence[Instance], answer: Answer, keep: Keep | None = None
) -> list[Tolerance]:
    """Of all items, in closed form; `keep` as in `Solver`.

    A plan counts as the best one, too, where no better one is found in `LIMIT_S`.
    """
    return [
        Tolerance(
            item,
            low=_limit(instances, answer, item, 1 / FARTHEST, keep),
            high=_limit(instances, answer, item, FARTHEST, keep),
        )
        for item in range(instances[0].items)
    ]


def _limit(
    instances: Sequence[Instance], answer: Answer, item: int, farthest: float, keep: Keep | None
) -> float | None:
    """The factor nearest to 1, in the direction of `farthest`, at which the choice changes."""

    def holds(factor: float) -> bool:
        scaled = [_scaled(instance, item, factor) for instance in instances]
        target = closed_form(scaled[answer.instance], answer) * (1 - MARGIN)
        found = Solver(scaled, target=target, limit_s=LIMIT_S, keep=keep).run()
        return found.best is None or found.best[1] >= target

    if holds(farthest):
        return None
    held, lost = 0.0, math.log(farthest)
    for _ in range(HALVINGS):
        middle = (held + lost) / 2
        if holds(math.exp(middle)):
            held = middle
        else:
            lost = middle
    return math.exp(lost)


def _scaled(instance: Instance, item: int, factor: float) -> Instance:
    old = instance.choices[item]
    new = replace(
        old, seconds=old.seconds * factor, tail=old.tail * factor, after=old.after * factor
    )
    choices = (*instance.choices[:item], new, *instance.choices[item + 1 :])
    return replace(instance, choices=choices)


def closed_form(instance: Instance, answer: Answer) -> float:
    """Seconds of an iteration of one plan."""
    load = _load(instance, answer, answer.tree)
    rows = Rows(
        tree=answer.tree,
        picks=np.asarray([answer.picks], np.int64),
        away=np.asarray([answer.away], np.bool_),
        devices=np.zeros((1, len(instance.available)), np.int64),
        load=np.asarray([load]),
    )
    return max(load, float(Flow(instance, rows).seconds(answer.lag)[0]))


def _load(instance: Instance, answer: Answer, tree: Tree) -> float:
    if tree.kind == "leaf":
        item = tree.items.bit_length() - 1
        choices, pick = instance.choices[item], answer.picks[item]
        switch = choices.switch[pick] if answer.away[item] else 0.0
        return float(choices.busy[pick] + switch)
    loads = [_load(instance, answer, part) for part in tree.parts]
    return max(loads) if tree.kind == "split" else sum(loads)
