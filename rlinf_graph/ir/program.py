"""A plan lowered to instructions: one list for each worker group, the same for all its ranks.

The lists are loops over symbolic positions, so their size does not depend on the number of
devices, micro-batches or iterations. `unroll` says what they mean in which order;
`ir/interpreter.py` what blocks whom. Simulation, `local` and Ray run the same lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.ir.batch import Source

Axis = Literal["chunk", "epoch", "minibatch", "micro_batch"]


@dataclass(frozen=True, slots=True)
class Position:
    """Where an interpreter stands in a worker group's list."""

    iteration: int
    rank: int
    chunk: int = 0
    epoch: int = 0
    minibatch: int = 0
    micro_batch: int = 0


class Part(StrEnum):
    """Which samples of an edge an instruction wants."""

    ALL = "all"
    CHUNK = "chunk"
    MINIBATCH = "minibatch"


@dataclass(frozen=True)
class Select:
    """The samples of a position: a chunk's shard, or a micro-batch's shard of a minibatch.

    Attributes:
        part: how the iteration's samples are cut first.
        count: chunks or minibatches of an iteration.
        micro_batches: micro-batches of a minibatch.
        permute: whether epochs after the first take the samples in another order.
    """

    part: Part
    count: int = 1
    micro_batches: int = 1
    permute: bool = False

    def rows(self, at: Position, total: int, ranks: int, seed: int = 0) -> NDArray[np.int64]:
        """Sample indices, in dispatch order, that the rank at a position works on.

        Args:
            at: the position.
            total: samples of an iteration on the edge.
            ranks: over how many ranks the samples are spread.
            seed: of the run; keys the permutation of later epochs.
        """
        if self.part is Part.ALL:
            return np.arange(total)
        index = at.chunk if self.part is Part.CHUNK else at.minibatch
        start, stop = _cut(0, total, index, self.count)
        if self.part is Part.MINIBATCH:
            start, stop = _cut(start, stop, at.micro_batch, self.micro_batches)
        rows = np.arange(*_cut(start, stop, at.rank, ranks))
        if self.permute and at.epoch > 0:
            key = np.random.Philox(key=seed, counter=[at.iteration, at.epoch, 0, 0])
            return np.random.Generator(key).permutation(total)[rows]
        return rows


@dataclass(frozen=True)
class Recv:
    """Wait for samples of an edge and bind them to the node's parameter."""

    edge: str
    param: str
    select: Select


@dataclass(frozen=True)
class Send:
    """Hand an output of the node, or a field of it, to an edge."""

    edge: str
    output: int
    field: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advance:
    """Move a data source to its next batch."""

    node: str


@dataclass(frozen=True)
class Run:
    """Run a node on the bound parameters. `samples` is what a chunk of all ranks holds."""

    node: str
    samples: int


@dataclass(frozen=True)
class Accumulate:
    """Forward and backward of one micro-batch of `samples` over all ranks."""

    node: str
    samples: int


@dataclass(frozen=True)
class OptimizerStep:
    """Sum gradients and weights over the ranks, divide once, update."""

    node: str


@dataclass(frozen=True)
class Load:
    """Bring a node's state onto its devices."""

    node: str


@dataclass(frozen=True)
class Offload:
    """Move a node's state off its devices."""

    node: str


@dataclass(frozen=True)
class Acquire:
    """Wait until it is this part's turn on the devices."""

    turn: str
    position: int


@dataclass(frozen=True)
class Release:
    """This rank is done with its turn."""

    turn: str
    position: int


@dataclass(frozen=True)
class Publish:
    """The model has trained for one more iteration: version + 1."""

    model: str
    node: str


@dataclass(frozen=True)
class Await:
    """Wait for the model's version of `staleness` iterations ago and take it over."""

    model: str
    node: str
    staleness: int
    method: str
    every: int = 1

    def version(self, iteration: int) -> int:
        """The version that an iteration reads: the newest delivered one that is old enough."""
        return max(0, iteration - self.staleness) // self.every * self.every


@dataclass(frozen=True)
class Free:
    """This rank needs nothing more of an edge in this iteration."""

    edge: str


@dataclass(frozen=True)
class Repeat:
    """Run the body `count` times, counting along an axis of the position."""

    axis: Axis
    count: int
    body: tuple[Instruction, ...]


@dataclass(frozen=True)
class When:
    """Run the body in every `every`-th iteration, beginning with the first."""

    every: int
    body: tuple[Instruction, ...]


Instruction = (
    Recv | Send | Advance | Run | Accumulate | OptimizerStep | Load | Offload | Acquire | Release
    | Publish | Await | Free | Repeat | When
)  # fmt: skip


@dataclass(frozen=True)
class Channel:
    """The queue of an edge: `samples` an iteration, at most `capacity` iterations at once."""

    edge: str
    source: Source
    target: str
    param: str
    samples: int
    capacity: int


@dataclass(frozen=True)
class Ring:
    """Takes turns on devices: the groups of each position, in order, again and again."""

    name: str
    positions: tuple[tuple[str, ...], ...]
    devices: tuple[int, ...]


@dataclass(frozen=True)
class WorkerGroup:
    """The workers of a node: `ranks` of them, each on an equal part of `devices` (none: host)."""

    name: str
    ranks: int
    devices: tuple[int, ...]
    body: tuple[Instruction, ...]

    @property
    def chunks(self) -> int:
        """The parts in which the group takes and emits its stream in an iteration."""
        return _chunks(self.body)

    def devices_of(self, rank: int) -> tuple[int, ...]:
        """The devices of one rank."""
        width = len(self.devices) // self.ranks
        return self.devices[rank * width : (rank + 1) * width]


@dataclass(frozen=True)
class Program:
    """What a backend interprets."""

    name: str
    groups: tuple[WorkerGroup, ...]
    channels: tuple[Channel, ...]
    rings: tuple[Ring, ...] = ()

    def group(self, name: str) -> WorkerGroup:
        """The worker group of a node; KeyError when there is none."""
        return {g.name: g for g in self.groups}[name]


def unroll(body: tuple[Instruction, ...], at: Position) -> Iterator[tuple[Instruction, Position]]:
    """The instructions of one iteration in order, loops carried out, each with its position."""
    for instruction in body:
        if isinstance(instruction, Repeat):
            for index in range(instruction.count):
                yield from unroll(instruction.body, _along(at, instruction.axis, index))
        elif isinstance(instruction, When):
            if at.iteration % instruction.every == 0:
                yield from unroll(instruction.body, at)
        else:
            yield instruction, at


def _chunks(body: tuple[Instruction, ...]) -> int:
    for instruction in body:
        if isinstance(instruction, Repeat):
            return instruction.count if instruction.axis == "chunk" else 1
        if isinstance(instruction, When):
            return _chunks(instruction.body)
    return 1


def _cut(start: int, stop: int, index: int, parts: int) -> tuple[int, int]:
    """Part `index` of a range cut into `parts` as equal as they can be."""
    size = stop - start
    return start + size * index // parts, start + size * (index + 1) // parts


def _along(at: Position, axis: Axis, index: int) -> Position:
    return replace(at, **{axis: index})
