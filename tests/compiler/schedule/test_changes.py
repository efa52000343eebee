"""What a change of a problem does to its best plan: nothing, or what it has to."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlinf_graph.compiler.schedule.flow import Flow
from rlinf_graph.compiler.schedule.instance import Choices, Instance, Span
from rlinf_graph.compiler.schedule.loads import Loads
from rlinf_graph.compiler.schedule.rows import Maker
from rlinf_graph.compiler.schedule.solve import Answer, Solver
from rlinf_graph.compiler.schedule.tree import Tree, expanded
from tests.compiler.schedule.strategies import Size, instances

CUTS = ((1,), (2,), (1, 2))
SMALL = Size(items=3, choices=3)
problems = instances(SMALL, CUTS)


def best_of(problem: list[Instance]) -> tuple[Answer, float] | None:
    return Solver(problem).run().best


def value(problem: list[Instance]) -> float:
    found = best_of(problem)
    return found[1] if found else float("inf")


def changed(problem: list[Instance], change: Callable[[Choices], Choices]) -> list[Instance]:
    return [replace(i, choices=tuple(map(change, i.choices))) for i in problem]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems)
def test_weights_that_may_come_later_are_never_worse(problem: list[Instance]) -> None:
    later = [
        replace(
            i,
            lags=(*i.lags, i.lags[-1] + 1),
            steps=tuple(
                replace(s, reads=tuple(replace(r, most=r.most + 1) for r in s.reads))
                for s in i.steps
            ),
        )
        for i in problem
    ]
    assert value(later) <= value(problem) * (1 + 1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems, factor=st.sampled_from([0.125, 3.0, 1e3]))
def test_multiplying_all_times_changes_nothing_but_the_numbers(
    problem: list[Instance], factor: float
) -> None:
    names = ("seconds", "tail", "switch", "after")
    slower = [
        replace(
            i,
            steps=tuple(replace(s, seconds=s.seconds * factor) for s in i.steps),
            least_sync=tuple(least * factor for least in i.least_sync),
            sync=None if i.sync is None else replace(i.sync, scale=factor),  # pyright: ignore[reportArgumentType]  # a dataclass of the strategies
        )
        for i in changed(
            problem, lambda c: replace(c, **{n: getattr(c, n) * factor for n in names})
        )
    ]
    before, after = best_of(problem), best_of(slower)
    assert (before is None) == (after is None)
    if before and after:
        assert after[1] == pytest.approx(before[1] * factor, rel=1e-9)
        assert str(after[0].tree) == str(before[0].tree)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems, order=st.permutations(range(3)))
def test_other_names_of_items_change_nothing(problem: list[Instance], order: list[int]) -> None:
    renamed: list[Instance] = []
    for i in problem:
        new = [item for item in order if item < i.items]
        place = {old: at for at, old in enumerate(new)}
        moved = [sum(1 << place[o] for o in range(i.items) if bits >> o & 1) for bits in i.together]
        parted = [sum(1 << place[o] for o in range(i.items) if bits >> o & 1) for bits in i.apart]
        sync = i.sync
        renamed.append(
            replace(
                i,
                choices=tuple(i.choices[item] for item in new),
                steps=tuple(replace(s, item=place[s.item] if s.item >= 0 else -1) for s in i.steps),
                least_sync=tuple(i.least_sync[item] for item in new),
                together=tuple(moved[item] for item in new) if moved else (),
                apart=tuple(parted[item] for item in new) if parted else (),
                sync=None if sync is None else _renamed(sync, new),
            )
        )
    assert value(renamed) == pytest.approx(value(problem), rel=1e-9)


def _renamed(
    sync: Callable[[int, int, Span, Span], float], new: list[int]
) -> Callable[[int, int, Span, Span], float]:
    return lambda trainer, item, a, b: sync(new[trainer], new[item], a, b)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems)
def test_other_numbers_of_choices_change_nothing(problem: list[Instance]) -> None:
    turned = changed(problem, lambda c: c.at(np.arange(len(c.seconds))[::-1]))
    assert value(turned) == pytest.approx(value(problem), rel=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems)
def test_a_free_switch_is_never_worse_for_what_shares_devices(problem: list[Instance]) -> None:
    def in_turn(problem: list[Instance]) -> float:
        apart = [(1 << i.items) - 1 & ~(1 << item) for i in problem[:1] for item in range(i.items)]
        return value([replace(i, together=tuple(apart)) for i in problem])

    free = changed(problem, lambda c: replace(c, switch=np.zeros_like(c.switch)))
    assert in_turn(free) <= in_turn(problem) * (1 + 1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems, seed=st.integers(0, 2**32 - 1))
def test_a_judge_has_the_last_word(problem: list[Instance], seed: int) -> None:
    """It may say more than the closed form, of any plan something else."""

    def judge(answer: Answer) -> float:
        drawn = np.random.default_rng([seed, zlib.crc32(f"{answer.tree} {answer.picks}".encode())])
        return answer.seconds * (1 + drawn.choice([0.0, 0.1, 1.0]))

    judged = Solver(problem, judge).run()
    exhaustive = Solver(problem, lambda answer: judge(answer) + 1e9).run().judged
    least = min((value - 1e9 for _answer, value in exhaustive), default=float("inf"))
    found = judged.best[1] if judged.best else float("inf")
    assert found == pytest.approx(least, rel=1e-6)
    assert judged.bound >= found * (1 - 1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems)
def test_no_tree_has_a_plan_below_its_bound(problem: list[Instance]) -> None:
    instance = problem[0]
    maker = Maker(instance, Loads(instance))
    every = (1 << instance.items) - 1
    todo = [(Tree("open" if every & (every - 1) else "leaf", every), 0.0)]
    while todo:
        tree, least = todo.pop()
        least = max(least, maker.loads.bound(tree))
        if not tree.complete:
            todo += [(form, least) for form in expanded(tree, instance)]
            continue
        rows = maker.rows(tree, 0.0, float("inf"))
        flow = Flow(instance, rows)
        if len(rows.load) and flow.order:
            for lag in instance.lags if tree.splits else instance.lags[:1]:
                assert (np.maximum(flow.seconds(lag), rows.load) >= least * (1 - 1e-9)).all()
