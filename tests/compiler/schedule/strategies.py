"""Random scheduling problems, small enough to try every plan of them.

All figures are quarters, so sums of them are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from rlinf_graph.compiler.schedule.instance import Choices, Instance, Read, Span, Step

AVAILABLE = ((2,), (3,), (4,), (1,), (4,), (3,), (2, 1), (1, 3), (2, 2), (1, 1))

CHUNKS = ((4,), (1,), (2, 4), (2,), (4,), (1, 2))


@dataclass(frozen=True)
class Size:
    """How large a problem may be: the most of each."""

    items: int = 3
    devices: int = 4
    types: int = 2
    choices: int = 3
    hosts: int = 2
    lag: int = 2
    least: int = 1
    rivals: bool = True


@dataclass(frozen=True)
class Row:
    """A choice, for any number of micro-batches."""

    sort: int
    count: int
    seconds: float
    resident: float
    working: float
    switch: float
    after: float = 0.0


@dataclass(frozen=True)
class Sync:
    """Seconds of deliveries that depend on all there is."""

    base: float
    scale: float = 1.0
    names: tuple[int, ...] = ()

    def __call__(self, _trainer: int, item: int, source: Span, target: Span) -> float:
        """Seconds of one: less on the same devices, more to another type and over far."""
        item = self.names[item] if self.names else item
        far = 0.0 if source == target else self.base + 0.25 * (source[1] // 2 != target[1] // 2)
        other = 0.5 if source[0] != target[0] else 0.0
        return self.scale * (0.25 * (item + 1) + far + other + 0.25 * abs(source[2] - target[2]))


def least_sync(steps: Sequence[Step], items: int, sync: Sync | None) -> tuple[float, ...]:
    """What deliveries take at least: from the same devices to as many."""
    found = [0.0] * items
    for step in steps:
        for read in step.reads if sync else ():
            found[step.item] += 0.25 * (step.item + 1) / read.every
    return tuple(found)


def choices_of(rows: Sequence[Row], types: int, chunks: int, late: float) -> Choices:
    """Rows as arrays; the part `late` of a trainer's seconds comes after all samples."""
    devices = np.zeros((len(rows), types), np.int64)
    for at, row in enumerate(rows):
        devices[at, row.sort] = row.count
    figures = {
        name: np.array([getattr(row, name) for row in rows], np.float64)
        for name in ("seconds", "resident", "working", "switch", "after")
    }
    tail = figures["seconds"] * (late + (1 - late) / chunks)
    return Choices(devices=devices, tail=tail, **figures)


@st.composite
def rows(draw: DrawFn, available: tuple[int, ...], memory: tuple[float, ...], most: int):
    """Choices of an item, those that fit on a device alone; now and then there is none."""
    found: list[Row] = []
    work = draw(st.integers(2, 16))
    switch = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0, 8.0]))
    if draw(st.integers(0, 31)) == 19:
        return found
    for _ in range(draw(st.integers(1, most))):
        sort = draw(st.integers(0, len(available) - 1))
        count = draw(st.integers(1, available[sort]))
        resident = draw(st.integers(0, 10))
        row = Row(
            sort=sort,
            count=count,
            seconds=draw(st.sampled_from([float(work), np.ceil(4 * work / count) / 4, 1.0])),
            resident=min(float(resident), memory[sort]),
            working=min(float(draw(st.integers(0, 6))), max(memory[sort] - resident, 0.0)),
            switch=draw(st.sampled_from([switch, switch, 0.0])),
            after=draw(st.sampled_from([0.0, 0.0, 0.0, 0.5])),
        )
        if row not in found:
            found.append(row)
    return found


@st.composite
def flows(draw: DrawFn, size: Size) -> tuple[tuple[Step, ...], tuple[bool, ...]]:
    """Steps, and whether each of the items trains."""
    count = draw(st.integers(size.least, size.items))
    names = draw(st.permutations(range(count)))
    trainers = draw(st.integers(1, min(2, count)))
    places = sorted(
        [*((at, 1) for at in range(count))]
        + [(draw(st.integers(0, count)), 0) for _ in range(draw(st.integers(0, size.hosts)))]
    )
    trains = [False] * count
    steps: list[Step] = []
    item_steps: list[int] = []
    for at, kind in places:
        inputs: tuple[int, ...] = ()
        if steps:
            chain = draw(st.booleans())
            inputs = (
                (len(steps) - 1,)
                if chain
                else tuple(sorted(draw(st.sets(st.integers(0, len(steps) - 1), max_size=2))))
            )
        if not kind:
            spent = draw(st.sampled_from([0.0, 0.0, 0.5, 2.0]))
            steps.append(Step(seconds=spent, barrier=draw(st.integers(0, 2)) == 1, inputs=inputs))
            continue
        item = names[at]
        trains[item] = at >= count - trainers
        barrier = trains[item] and draw(st.booleans())
        item_steps.append(len(steps))
        whole = not trains[item] and draw(st.integers(0, 4)) == 3
        streams = not trains[item] and not whole
        steps.append(Step(item, 0.0, barrier, inputs, streams=streams, whole=whole))
    makers = item_steps[count - trainers :]
    for v in item_steps:
        sources = [u for u in makers if u != v and (v not in makers or draw(st.booleans()))]
        steps[v] = replace(steps[v], reads=tuple(draw(_reads(sources, size.lag))))
    return tuple(steps), tuple(trains)


@st.composite
def _reads(draw: DrawFn, trainers: Sequence[int], most: int):
    return [
        Read(
            trainer,
            most=draw(st.integers(0, most)),
            late=draw(st.sampled_from([0, 0, 0, 1])),
            every=draw(st.sampled_from([1, 1, 2])),
        )
        for trainer in trainers
        if draw(st.integers(0, 3))
    ]


@st.composite
def instances(draw: DrawFn, size: Size, chunks: Sequence[tuple[int, ...]] = CHUNKS):
    """One problem, cut into numbers of micro-batches: a list of instances."""
    available = draw(
        st.sampled_from([a for a in AVAILABLE if sum(a) <= size.devices and len(a) <= size.types])
    )
    memory = tuple(float(draw(st.sampled_from([8, 10, 12, 16, 24]))) for _ in available)
    steps, trains = draw(flows(size))
    table = [draw(rows(available, memory, size.choices)) for _ in trains]
    sync = draw(st.sampled_from([None, Sync(0.0), Sync(1.0)]))
    late = draw(_late(steps))
    together, apart = draw(_rivals(len(trains))) if size.rivals else ((), ())
    return [
        Instance(
            choices=tuple(
                choices_of(each, len(available), m, part)
                for each, part in zip(table, late, strict=True)
            ),
            steps=steps,
            available=available,
            memory=memory,
            chunks=m,
            lags=_lags(steps),
            sync=sync,
            least_sync=least_sync(steps, len(trains), sync),
            together=together,
            apart=apart,
        )
        for m in draw(st.sampled_from(chunks))
    ]


@st.composite
def roomy(draw: DrawFn, items: int = 6, devices: int = 6, chunks: int = 2) -> Instance:
    """A choice for each number of devices of one type, and memory for everything."""
    steps, _ = draw(flows(Size(items=items, least=items, hosts=1, lag=1)))
    table = []
    for _ in range(items):
        work, fixed = draw(st.integers(2, 24)), draw(st.sampled_from([0.0, 0.5, 2.0]))
        table.append(
            [
                Row(0, count, float(np.ceil(4 * work / count) / 4) + fixed, 1.0, 0.0, 0.0)
                for count in range(1, devices + 1)
            ]
        )
    return Instance(
        choices=tuple(
            choices_of(each, 1, chunks, part)
            for each, part in zip(table, draw(_late(steps)), strict=True)
        ),
        steps=steps,
        available=(devices,),
        memory=(1e3,),
        chunks=chunks,
        lags=_lags(steps),
    )


@st.composite
def _late(draw: DrawFn, steps: Sequence[Step]) -> list[float]:
    """The part of each item's seconds that comes after all samples."""
    late = {
        step.item: 1.0
        if step.barrier
        else 0.0
        if step.streams
        else draw(st.sampled_from([0.0, 0.5, 0.75]))
        for step in steps
    }
    return [late[item] for item in sorted(late) if item >= 0]


@st.composite
def _rivals(draw: DrawFn, items: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two that must not stand side by side, and two that must not take turns; mostly none."""
    found = [0] * items, [0] * items
    for rivals in found:
        if items > 1 and draw(st.integers(0, 7)) == 5:
            a, b = draw(st.permutations(range(items)))[:2]
            rivals[a], rivals[b] = 1 << b, 1 << a
    return tuple(found[0]), tuple(found[1])


def _lags(steps: Sequence[Step]) -> tuple[int, ...]:
    return tuple(range(max((read.most for step in steps for read in step.reads), default=0) + 1))
