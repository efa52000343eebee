"""Random pipelines with loops and states over one batch type, and what they have to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from rlinf_graph import rl
from rlinf_graph.nodes.execution import execution

COUNT = 8
DECODER = Path(__file__).parents[2] / "plans" / "decoder"
DATA = Path(__file__).parents[3] / "demo" / "arithmetic" / "demonstrations.jsonl"
policy = rl.Model(str(DECODER), weights="random")
seen: dict[int, list[Any]] = {}


class Marked(rl.Batch, granularity=rl.Granularity.SAMPLE):
    """A number, and whether a loop is done with it."""

    values: torch.Tensor = rl.per_sample()
    done: torch.Tensor = rl.per_sample()


def _eight(_call: rl.Call) -> tuple[rl.Volume, ...]:
    return (rl.Volume(COUNT, rl.Lengths.fixed(1, "declared")),)


@rl.node(volume=_eight)
def begin(*, first: float) -> Marked:
    index = torch.arange(COUNT)
    values = first + index.double() / COUNT
    return Marked(index=index, group=index, values=values, done=values < 0)


@rl.node(unit=rl.SAMPLE)
def scaled(x: Marked, *, by: float) -> Marked:
    return x.replace(values=x.values * by + 0.125)


@rl.node(unit=rl.SAMPLE)
def mixed(x: Marked, y: Marked) -> Marked:
    """Of two batches that may hold different samples in a loop: those of the first."""
    other = torch.zeros(COUNT, dtype=torch.float64)
    other[y.index] = y.values
    return x.replace(values=(x.values + other[x.index]) / 2)


@rl.node(unit=rl.SAMPLE)
def judged(x: Marked, *, limit: float) -> Marked:
    return x.replace(done=x.values > limit)


@rl.node
def centred(x: Marked) -> Marked:
    return x.replace(values=x.values - x.values.mean() / 2 if len(x) else x.values)


@rl.node
def shown(x: Marked) -> None:
    made = sorted(zip(x.index.tolist(), x.values.tolist(), strict=True))
    seen.setdefault(execution().iteration, []).append(made)


@dataclass(frozen=True)
class Op:
    """A statement: `of` names earlier values, counted from the newest."""

    kind: str
    of: tuple[int, ...] = ()
    number: float = 0.0
    length: int = 0
    body: tuple[Op, ...] = ()
    emits: bool = False


def carried_out(ops: tuple[Op, ...], pool: list[Marked]) -> list[Marked]:
    """Call the nodes of the statements: on symbols, or on values."""
    for op in ops:
        taken = [pool[-1 - place % len(pool)] for place in op.of]
        if op.kind != "loop":
            pool.append(CALLS[op.kind](taken, op))
            continue
        until = "done" if any(inner.kind == "judged" for inner in op.body[-1:]) else ""

        def body(value: Marked, op: Op = op, pool: list[Marked] = pool) -> Any:
            inside = carried_out(op.body, [*pool, value])
            last = inside[-1]
            return (last, CALLS["scaled"]([last], Op("scaled", number=2.0))) if op.emits else last

        made: Any = rl.unroll(body, start=taken[0], length=op.length, until=until)
        pool += list(made) if op.emits else [made]
    return pool


CALLS: dict[str, Callable[[list[Marked], Op], Marked]] = {
    "scaled": lambda x, op: scaled(x[0], by=op.number),
    "mixed": lambda x, _op: mixed(x[0], x[1]),
    "judged": lambda x, op: judged(x[0], limit=op.number),
    "centred": lambda x, _op: centred(x[0]),
}


def _plain(fresh: bool) -> st.SearchStrategy[Op]:
    """A statement; the first one of a loop's body takes the value that is carried."""
    place = st.just(0) if fresh else st.integers(0, 5)
    number = st.sampled_from([0.25, 0.5, 0.75, 1.0])
    return st.one_of(
        st.builds(lambda a, n: Op("scaled", (a,), n), place, number),
        st.builds(lambda a, b: Op("mixed", (a, b)), place, st.integers(0, 5)),
        st.builds(lambda a: Op("centred", (a,)), place),
    )


def _body(depth: int) -> st.SearchStrategy[tuple[Op, ...]]:
    more = _plain(False) if depth == 0 else st.one_of(_plain(False), _loop(depth - 1))
    end = st.one_of(
        st.just(Op("scaled", (0,), 0.5)),
        st.builds(lambda n: Op("judged", (0,), n), st.sampled_from([0.2, 0.5, 1.0])),
    )
    return st.builds(lambda a, b, c: (a, *b, c), _plain(True), st.lists(more, max_size=1), end)


def _loop(depth: int) -> st.SearchStrategy[Op]:
    return st.builds(
        lambda a, n, b, e: Op("loop", (a,), length=n, body=b, emits=e),
        st.integers(0, 3),
        st.integers(1, 4),
        _body(depth),
        st.booleans(),
    )


programs = st.builds(
    lambda a, b, c: (a, b, *c),
    _plain(False),
    _loop(1),
    st.lists(st.one_of(_plain(False), _loop(0)), max_size=2),
)


def count(ops: tuple[Op, ...]) -> int:
    """Nodes of the statements, loops included."""
    return sum(1 + op.emits + count(op.body) for op in ops)


def pipeline_of(ops: tuple[Op, ...], *, keeps: bool) -> rl.Pipeline:
    """The pipeline; `keeps` its last value for the next iteration."""

    @rl.pipeline
    def random_pipeline() -> None:
        first = begin(first=0.5)
        value = rl.state(first) if keeps else first
        last = carried_out(ops, [value])[-1]
        shown(last)
        if keeps:
            rl.carry(last, into=value)
        rl.train(policy, rl.examples(str(DATA), batch=COUNT), loss=rl.SupervisedLoss())

    return random_pipeline


def expected(ops: tuple[Op, ...], *, keeps: bool, iterations: int) -> dict[int, list[Any]]:
    """What `shown` has to see, from the same statements on values."""
    value, found = begin(first=0.5), dict[int, list[Any]]()
    for iteration in range(iterations):
        last = carried_out(ops, [value])[-1]
        found[iteration] = [sorted(zip(last.index.tolist(), last.values.tolist(), strict=True))]
        value = last if keeps else value
    return found
