"""The solver against an oracle that tries every plan, and what a change may do to the best one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from rlinf_graph.compiler.schedule.instance import Instance
from rlinf_graph.compiler.schedule.solve import Solver
from tests.compiler.schedule.oracle import best, best_of_grid
from tests.compiler.schedule.strategies import Size, instances, roomy

CUTS = ((1,), (2,), (1, 2), (1, 4))
SMALL, MANY = Size(items=3, choices=3), Size(items=4, choices=1, hosts=1, lag=1, least=4)


def solved(problem: list[Instance]) -> float:
    found = Solver(problem).run()
    value = found.best[1] if found.best else float("inf")
    assert found.bound >= value * (1 - 1e-9)
    return value


@settings(max_examples=400, deadline=None, derandomize=True)
@given(problem=instances(SMALL, CUTS))
def test_the_answer_is_the_best_of_all_plans(problem: list[Instance]) -> None:
    assert solved(problem) == pytest.approx(best(problem), rel=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problem=instances(MANY, CUTS))
def test_the_answer_is_the_best_of_all_plans_of_four_items(problem: list[Instance]) -> None:
    assert solved(problem) == pytest.approx(best(problem), rel=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problem=instances(SMALL, CUTS))
def test_one_more_device_or_more_memory_is_never_worse(problem: list[Instance]) -> None:
    before = solved(problem)
    more = [replace(i, available=(i.available[0] + 1, *i.available[1:])) for i in problem]
    assert solved(more) <= before * (1 + 1e-9)
    larger = [replace(i, memory=tuple(2 * m for m in i.memory)) for i in problem]
    assert solved(larger) <= before * (1 + 1e-9)


@pytest.mark.timeout(900)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(problem=roomy())
def test_the_answer_is_the_best_of_all_plans_of_six_items_on_six_devices(problem: Instance) -> None:
    assert solved([problem]) == pytest.approx(best_of_grid(problem), rel=1e-9)
