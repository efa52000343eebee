"""Batches of samples of any length: nothing is lost, doubled or reordered, in any batch type."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlinf_graph.rl  # noqa: F401  registers every batch type
from rlinf_graph.ir import packed, ragged
from rlinf_graph.ir.batch import Batch, Carried, TokenBatch
from rlinf_graph.ir.batches import Observations, Rollouts, Transitions

KINDS = sorted(
    (
        kind
        for kind in Carried.types.values()
        if issubclass(kind, Batch) and kind.__module__.startswith("rlinf_graph.")
    ),
    key=lambda kind: kind.__name__,
)
TOKEN_KINDS = [kind for kind in KINDS if issubclass(kind, TokenBatch)]
NUMBERS = ("index", "group", "lengths")

Row = dict[str, Any]
Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
few = settings(max_examples=20, deadline=None)


def fields(kind: type[Batch], axis: str) -> dict[str, int]:
    names = kind.columns_by_axis()[axis]
    return {name: extra for name, extra in names.items() if name not in NUMBERS}


@st.composite
def shapes(draw: st.DrawFn, kind: type[Batch]) -> Shapes:
    """A type and trailing dimensions for every tensor field."""
    one = st.tuples(
        st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool]),
        st.sampled_from([(), (1,), (2, 3)]),
    )
    return {n: draw(one) for axis in ("sample", "token") for n in fields(kind, axis)}


@st.composite
def rows_of(draw: st.DrawFn, kind: type[Batch], shapes: Shapes, most: int = 5) -> list[Row]:
    """Samples with distinct indices; every number in them is another one, as far as bool can."""
    index = draw(st.lists(st.integers(0, 30), max_size=most, unique=True))
    fresh = itertools.count(1)

    def tensor(name: str, *size: int) -> torch.Tensor:
        dtype, trailing = shapes[name]
        shape = torch.Size((*size, *trailing))
        start = next(fresh) * 1000
        numbers = torch.arange(start, start + shape.numel()).reshape(shape)
        return numbers % 3 == 0 if dtype is torch.bool else numbers.to(dtype)

    rows: list[Row] = []
    for i in index:
        row: Row = {"index": i, "group": i // 2}
        length = row["lengths"] = draw(st.integers(0, 4)) if issubclass(kind, TokenBatch) else 0
        row |= {n: tensor(n) for n in fields(kind, "sample")}
        row |= {n: tensor(n, length + extra) for n, extra in fields(kind, "token").items()}
        row |= {n: draw(values(i)) for n in fields(kind, "object")}
        rows.append(row)
    return rows


def values(i: int) -> st.SearchStrategy[Any]:
    few_numbers = st.lists(st.integers(), max_size=3)
    return st.one_of(st.just(f"text {i}"), st.just({"truth": i}), few_numbers)


def built(kind: type[Batch], shapes: Shapes, rows: list[Row]) -> Any:
    made: dict[str, Any] = {}
    for name in kind.columns_by_axis()["sample"]:
        dtype, trailing = shapes.get(name, (torch.int64, ()))
        found = [torch.as_tensor(row[name], dtype=dtype) for row in rows]
        made[name] = torch.stack(found) if rows else torch.empty((0, *trailing), dtype=dtype)
    for name in fields(kind, "token"):
        dtype, trailing = shapes[name]
        empty = torch.empty((0, *trailing), dtype=dtype)
        made[name] = torch.cat([empty, *(row[name] for row in rows)])
    for name in fields(kind, "object"):
        made[name] = [row[name] for row in rows]
    return kind(**made)


def same(a: Batch, b: Batch) -> None:
    assert type(a) is type(b)
    for name in itertools.chain(*type(a).columns_by_axis().values()):
        one, two = getattr(a, name), getattr(b, name)
        if isinstance(two, torch.Tensor):
            assert one.dtype == two.dtype, name
            assert torch.equal(one, two), name
        else:
            assert one == two, name


@every_kind
@few
@given(data=st.data())
def test_selected_rows_are_those_rows(kind: type[Batch], data: st.DataObject) -> None:
    form = data.draw(shapes(kind))
    rows = data.draw(rows_of(kind, form))
    batch = built(kind, form, rows)
    positions = range(-len(rows), len(rows))
    chosen = data.draw(st.lists(st.sampled_from(positions), max_size=8)) if rows else []
    expected = built(kind, form, [rows[i] for i in chosen])
    same(packed.select(batch, chosen), expected)
    same(packed.select(batch, np.array(chosen, dtype=np.int32)), expected)
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, len(rows))] * 2)))
    same(packed.select(batch, range(a, b)), built(kind, form, rows[a:b]))
    same(packed.select(batch, slice(a, b)), built(kind, form, rows[a:b]))


@every_kind
@few
@given(data=st.data())
def test_parts_of_a_partition_make_the_batch(kind: type[Batch], data: st.DataObject) -> None:
    form = data.draw(shapes(kind))
    rows = data.draw(rows_of(kind, form))
    batch = built(kind, form, rows)
    owners = np.array(data.draw(st.lists(st.integers(0, 2), min_size=5, max_size=5)))
    partition = [np.flatnonzero(owners[: len(rows)] == owner) for owner in range(3)]
    joined = packed.concat([packed.select(batch, part) for part in partition])
    order = np.concatenate(partition)
    same(joined, built(kind, form, [rows[i] for i in order]))
    same(packed.select(joined, np.argsort(order)), batch)
    same(ragged.join([packed.select(batch, part) for part in partition]), packed.in_order(batch))


def pieces_of(kind: type[Batch], row: Row, cuts: list[int]) -> list[Row]:
    """A sample step by step. Only the last piece holds what is as at the last step."""
    edges = [0, *cuts, row["lengths"]]
    pieces: list[Row] = []
    for number, (a, b) in enumerate(itertools.pairwise(edges), start=1):
        final = number == len(edges) - 1
        piece = row | {"lengths": b - a}
        for name in fields(kind, "sample"):
            piece[name] = row[name] if final else torch.zeros_like(row[name])
        for name, extra in fields(kind, "token").items():
            piece[name] = row[name][a : b + extra]
        for name in fields(kind, "object"):
            value = row[name]
            if isinstance(value, list):
                piece[name] = value[a:] if final else value[a:b]
            else:
                piece[name] = value if final else "before"
        pieces.append(piece)
    return pieces


@pytest.mark.parametrize("kind", TOKEN_KINDS, ids=lambda kind: kind.__name__)
@few
@given(data=st.data())
def test_joined_steps_are_the_episodes(kind: type[Batch], data: st.DataObject) -> None:
    form = data.draw(shapes(kind))
    rows = data.draw(rows_of(kind, form))
    steps: list[list[Row]] = [[], [], [], []]
    for row in rows:
        when = sorted(data.draw(st.sets(st.integers(0, 3), min_size=1)))
        most = row["lengths"]
        cut = st.lists(st.integers(0, most), min_size=len(when) - 1, max_size=len(when) - 1)
        for step, piece in zip(when, pieces_of(kind, row, sorted(data.draw(cut))), strict=True):
            steps[step].append(piece)
    parts: list[Any] = []
    for step in steps:
        shuffled = data.draw(st.permutations(step))
        middle = data.draw(st.integers(0, len(step)))
        parts += [built(kind, form, g) for g in (shuffled[:middle], shuffled[middle:])]
    rows.sort(key=lambda row: row["index"])
    same(ragged.join(parts), built(kind, form, rows))


@given(data=st.data())
@few
def test_of_other_batches_the_last_step_stays(data: st.DataObject) -> None:
    form = data.draw(shapes(Observations))
    steps = [data.draw(rows_of(Observations, form)) for _ in range(3)]
    last = {row["index"]: row for step in steps for row in step}
    expected = built(Observations, form, [last[index] for index in sorted(last)])
    same(ragged.join([built(Observations, form, step) for step in steps]), expected)


def transitions(observations: list[float], finals: list[Any], index: int = 0) -> Transitions:
    steps = len(observations) - 1
    ones = torch.ones(steps)
    return Transitions(
        index=torch.tensor([index]),
        group=torch.tensor([index]),
        lengths=torch.tensor([steps]),
        observations=torch.tensor(observations),
        actions=ones,
        logprobs=ones,
        versions=ones.to(torch.int64),
        reward_values=ones,
        terminated=ones > 1,
        truncated=ones > 1,
        finals=[finals],
    )


def test_steps_share_the_state_between_them() -> None:
    steps = [transitions([0.0, 1.0], ["a"]), transitions([5.0, 6.0], [], index=1)]
    steps += [transitions([1.0, 2.0], ["b"]), transitions([6.0, 7.0], [], index=1)]
    episode = ragged.join(steps)
    assert episode.observations.tolist() == [0.0, 1.0, 2.0, 5.0, 6.0, 7.0]
    assert episode.lengths.tolist() == [2, 2]
    assert episode.finals == [["a", "b"], []]
    assert steps[0].finals == [["a"]]


def test_a_part_that_is_in_order_is_returned() -> None:
    part = transitions([0.0, 1.0], [])
    assert ragged.join([part]) is part
    with pytest.raises(ValueError, match="nothing to join"):
        ragged.join([])


@pytest.mark.parametrize("rows", [[0, 1, 2], [1, 2], [2, 0]])
def test_what_was_selected_is_a_copy(rows: list[int]) -> None:
    form: Shapes = {
        n: (torch.float64, ()) for axis in ("sample", "token") for n in fields(Rollouts, axis)
    }
    template = {n: torch.ones(()) for n in fields(Rollouts, "sample")}
    template |= {n: torch.ones(2) for n in fields(Rollouts, "token")}
    template |= {n: "text" for n in fields(Rollouts, "object")}
    batch = built(
        Rollouts, form, [template | {"index": i, "group": i, "lengths": 2} for i in range(3)]
    )
    chosen = packed.select(batch, rows)
    for name in (*fields(Rollouts, "sample"), *fields(Rollouts, "token"), *NUMBERS):
        getattr(chosen, name).fill_(-1)
        assert (getattr(batch, name) >= 0).all(), name
    chosen.responses[0] = "other"
    assert batch.responses == ["text"] * 3


def test_parts_of_other_types_become_as_the_first() -> None:
    one = transitions([0.0, 1.0], [])
    other = one.replace(observations=one.observations.to(torch.float64))
    assert packed.concat([one, other]).observations.dtype == torch.float32


@pytest.mark.parametrize("rows", [[3], [-4], [0, 3], range(1, 4)])
def test_positions_that_are_not_there_are_an_error(rows: Any) -> None:
    batch = Observations(index=torch.arange(3), group=torch.arange(3), values=torch.zeros(3, 2))
    with pytest.raises(IndexError):
        packed.select(batch, rows)


tokens = st.lists(st.one_of(st.just(0), st.integers(1, 9), st.integers(50, 200)), max_size=30)


@given(lengths=tokens, parts=st.integers(1, 9))
def test_ranks_take_each_row_once_and_about_as_many_tokens(lengths: list[int], parts: int) -> None:
    shares = ragged.balanced(lengths, parts)
    assert len(shares) == parts
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(lengths)))
    assert all((np.diff(share) > 0).all() for share in shares)
    assert sum(len(share) > 0 for share in shares) == min(parts, len(lengths))
    loads = [sum(lengths[row] for row in share) for share in shares]
    assert max(loads) <= sum(lengths) / parts + max(lengths, default=0)


def test_shares_depend_on_the_lengths_only() -> None:
    lengths = [7, 3, 3, 3, 0, 0, 7, 5]
    expected = [[0, 2], [3, 6], [1, 4, 5, 7]]
    for given_as in (lengths, np.array(lengths, dtype=np.int32), torch.tensor(lengths)):
        assert [s.tolist() for s in ragged.balanced(given_as, 3)] == expected


@given(lengths=tokens, budget=st.integers(1, 300))
def test_consecutive_micro_batches_fill_the_budget(lengths: list[int], budget: int) -> None:
    cuts = ragged.within_tokens(lengths, budget)
    numbers = list(range(len(lengths)))
    assert [row for cut in cuts for row in numbers[cut]] == numbers
    assert all(numbers[cut] for cut in cuts)
    for cut in cuts:
        assert sum(lengths[cut]) <= budget or len(numbers[cut]) == 1
    for cut, after in itertools.pairwise(cuts):
        assert sum(lengths[cut]) + lengths[after.start] > budget


@given(lengths=tokens, budget=st.integers(1, 300))
def test_bins_hold_each_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    bins = ragged.binned(torch.tensor(lengths, dtype=torch.int64), budget)
    assert sorted(row for found in bins for row in found.tolist()) == list(range(len(lengths)))
    assert [found[0] for found in bins] == sorted(found[0] for found in bins)
    for found in bins:
        assert (np.diff(found) > 0).all()
        assert sum(lengths[row] for row in found) <= budget or len(found) == 1
    loads = sorted(sum(lengths[row] for row in found) for found in bins)
    shared = [load for load in loads if load <= budget]
    assert len(shared) < 2 or shared[0] + shared[1] > budget


def test_bins_are_fewer_than_consecutive_cuts() -> None:
    lengths = [6, 5, 4, 5]
    assert len(ragged.within_tokens(lengths, 10)) == 3
    assert [found.tolist() for found in ragged.binned(lengths, 10)] == [[0, 2], [1, 3]]


def test_no_part_and_no_budget_are_errors() -> None:
    with pytest.raises(ValueError, match="0 parts"):
        ragged.balanced([1], 0)
    for cut in (ragged.within_tokens, ragged.binned):
        with pytest.raises(ValueError, match="at most 0 tokens"):
            cut([1], 0)
