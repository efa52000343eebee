"""The search over divisions into stages, against a program that tries them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlinf_graph.compiler.schedule.partition import Menu, Problem, Score, divide
from rlinf_graph.compiler.schedule.tables import Tables, fill_and_stream

SECONDS = st.floats(0.5, 100.0)


def blocks(items: Sequence[int]) -> Iterator[list[list[int]]]:
    """Every way to put items into blocks."""
    if not items:
        yield []
        return
    for others in blocks(items[1:]):
        yield [[items[0]], *others]
        for place, block in enumerate(others):
            yield [*others[:place], [items[0], *block], *others[place + 1 :]]


def tried(
    costs: dict[int, list[tuple[tuple[int, ...], float]]],
    nodes: int,
    available: tuple[int, ...],
    score: Score,
) -> float:
    """The best score of all divisions: every block at every entry of its menu."""
    best = float("inf")
    for found in blocks(range(nodes)):
        menus = [costs.get(sum(1 << node for node in block), []) for block in found]
        for chosen in product(*menus):
            used = [sum(devices[t] for devices, _ in chosen) for t in range(len(available))]
            if all(a <= b for a, b in zip(used, available, strict=True)):
                stages = [seconds for _devices, seconds in chosen]
                value = score(np.asarray([sum(stages)]), np.asarray([max(stages)]))
                best = min(best, float(value[0]))
    return best


def late(micro_batches: int, staleness: int) -> Score:
    """The period when an iteration may begin before others end."""
    fill = fill_and_stream(micro_batches)
    return lambda total, slowest: np.maximum(
        micro_batches * slowest, fill(total, slowest) / (staleness + 1)
    )


@st.composite
def problems(draw: st.DrawFn, types: int) -> tuple[Problem, float]:
    nodes = draw(st.integers(1, 4))
    available = tuple(draw(st.integers(1, 4)) for _ in range(types))
    sizes = [s for s in product(*(range(a + 1) for a in available)) if any(s)]
    costs = {
        block: draw(st.lists(st.tuples(st.sampled_from(sizes), SECONDS), max_size=6))
        for block in range(1, 1 << nodes)
    }
    score = draw(st.sampled_from((fill_and_stream(1), fill_and_stream(8), late(4, 1), late(4, 3))))
    menus = {
        block: Menu.of(np.asarray([d for d, _s in rows]), np.asarray([s for _d, s in rows]))
        for block, rows in costs.items()
        if rows
    }
    return Problem(nodes, available, menus, score), tried(costs, nodes, available, score)


@settings(max_examples=300, deadline=None)
@given(problems(types=1) | problems(types=2))
def test_divides_as_well_as_trying_everything(case: tuple[Problem, float]) -> None:
    problem, best = case
    found = divide(problem)
    if found is None:
        assert best == float("inf")
        return
    assert found.score == pytest.approx(best, rel=1e-9)
    assert found.proved
    placed = [stage.nodes for stage in found.stages]
    assert sum(placed) == (1 << problem.nodes) - 1
    for kind, most in enumerate(problem.available):
        assert sum(stage.devices[kind] for stage in found.stages) <= most
    stages = [stage.seconds for stage in found.stages]
    value = problem.score(np.asarray([sum(stages)]), np.asarray([max(stages)]))
    assert found.score == pytest.approx(float(value[0]))


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    devices = draw(st.integers(1, 24))
    made = {
        f"node {node}": {
            g: draw(SECONDS) for g in draw(st.sets(st.integers(1, devices), min_size=1, max_size=8))
        }
        for node in range(draw(st.integers(1, 5)))
    }
    return Tables(made, devices, draw(st.sampled_from((1, 3, 64))))


@settings(max_examples=100, deadline=None)
@given(tables(), st.floats(0.01, 1000.0))
def test_only_the_costs_decide(given_: Tables, factor: float) -> None:
    found = given_.divide()
    turned = dict(reversed(given_.seconds.items()))
    again = Tables(turned, given_.devices, given_.micro_batches).divide()
    more = Tables(given_.seconds, given_.devices + 1, given_.micro_batches).divide()
    scaled = {n: {g: s * factor for g, s in t.items()} for n, t in given_.seconds.items()}
    slower = Tables(scaled, given_.devices, given_.micro_batches).divide()
    if found is None:
        assert again is None
        assert slower is None
        return
    assert again == found
    assert more is not None
    assert more.score <= found.score * (1 + 1e-12)
    assert slower is not None
    assert slower.score == pytest.approx(found.score * factor)


def test_says_what_is_left_when_time_runs_out() -> None:
    work = {f"n{i}": {g: 10.0 * (i + 1) / g for g in range(1, 65)} for i in range(5)}
    case = Tables(work, 64, 8)
    best, early = case.divide(), case.divide(limit_s=0.0)
    assert best is not None
    assert best.proved
    assert early is not None
    assert not early.proved
    assert early.bound <= best.score <= early.score


def test_has_nothing_to_say_where_nothing_fits() -> None:
    assert Tables({"a": {4: 1.0}}, 2, 8).divide() is None
    assert Tables({"a": {2: 1.0}, "b": {1: 1.0}}, 2, 8).divide() is None
