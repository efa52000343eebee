"""A plan lowered to instructions: one list for each worker group, the same for all its ranks.

The lists are loops over symbolic positions, so their size does not depend on the number of
devices, micro-batches or iterations. `unroll` says what they mean in which order;
`ir/interpreter.py` what blocks whom. Simulation, `local` and Ray run the same lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.position import Axis, Position, Select, cut, span


@dataclass(frozen=True)
class Recv:
    """Wait for samples of an edge, `lag` steps old, and bind them to the node's parameter."""

    edge: str
    param: str
    select: Select
    lag: int = 0


@dataclass(frozen=True)
class Send:
    """Hand an output of the node, or a field of it, to an edge.

    Attributes:
        edge: the edge.
        output: its number.
        field: of the output.
        gathered: name of what was gathered in a loop, sent instead of the last run's output; of all
            chunks.
        until: field of the output that keeps samples from being sent where it is true.
    """

    edge: str
    output: int
    field: tuple[str, ...] = ()
    gathered: str = ""
    until: str = ""


@dataclass(frozen=True)
class Keep:
    """Put an output aside while a loop goes on.

    Attributes:
        slot: its name.
        output: its number.
        gathered: name of what an inner loop gathered, kept instead of the last run's output.
        until: field of the output: only samples are kept for which it is true.
    """

    slot: str
    output: int
    gathered: str = ""
    until: str = ""


@dataclass(frozen=True)
class Gather:
    """Join what a loop has put aside, and leave the slot empty."""

    slot: str


@dataclass(frozen=True)
class Repartition:
    """Of a micro-batch that every rank has, keep this rank's share: tokens in equal parts."""

    node: str


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
    """Wait for the model's version of `staleness` iterations ago and take it over.

    `served` is the named port that takes it, and `decay` what that keeps of its own weights: then
    every delivered version counts, in order. With `interrupt` a newer version that has come is as
    good, and one that comes while the node generates is taken over at once.
    """

    model: str
    node: str
    staleness: int
    method: Literal["copy", "broadcast"]
    every: int = 1
    served: str = ""
    decay: float = 0.0
    interrupt: bool = False

    def version(self, iteration: int) -> int:
        """The version that an iteration reads: the newest delivered one that is old enough."""
        return max(0, iteration - self.staleness) // self.every * self.every


@dataclass(frozen=True)
class Free:
    """This rank needs nothing more of an edge in this step, or in the one `lag` before."""

    edge: str
    lag: int = 0


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


@dataclass(frozen=True)
class Branch:
    """One body in the first or the last step of a loop, another in its other steps.

    `depth` counts loops from the outermost, 1; 0 means the iterations, of which none is the last.
    """

    depth: int
    at: Literal["first", "last"]
    then: tuple[Instruction, ...] = ()
    otherwise: tuple[Instruction, ...] = ()


Instruction = (
    Recv | Send | Advance | Run | Accumulate | OptimizerStep | Load | Offload | Acquire | Release
    | Publish | Await | Free | Keep | Gather | Repartition | Repeat | When | Branch
)  # fmt: skip


@dataclass(frozen=True)
class Channel:
    """The queue of an edge: at most `samples` a moment, at most `capacity` moments at once.

    A moment is an iteration, or a step of the `depth` loops around both ends.
    """

    edge: str
    source: Source
    target: str
    param: str
    samples: int
    capacity: int
    depth: int = 0


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

    @cached_property
    def chunks(self) -> int:
        """The parts in which the group takes and emits its stream in an iteration."""
        return _chunks(self.body)

    def devices_of(self, rank: int) -> tuple[int, ...]:
        """The devices of one rank."""
        width = len(self.devices) // self.ranks
        return self.devices[rank * width : (rank + 1) * width]

    def share(self, at: Position, samples: int, ranks: int, *, whole: bool) -> NDArray[np.int64]:
        """The rows of an output that a rank is to make at a position, or with all its chunks.

        Args:
            at: the position.
            samples: of the output, over all ranks and chunks.
            ranks: that make it.
            whole: whether the chunks come together.
        """
        chunks = self.chunks
        if not whole or chunks == 1:
            return span(*cut(*cut(0, samples, at.chunk, chunks), at.rank, ranks))
        if ranks == 1:
            return span(0, samples)
        parts = [cut(*cut(0, samples, chunk, chunks), at.rank, ranks) for chunk in range(chunks)]
        return np.concatenate([span(*part) for part in parts])


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


def unroll(
    body: tuple[Instruction, ...], at: Position, lengths: tuple[int, ...] = ()
) -> Iterator[tuple[Instruction, Position]]:
    """The instructions of one iteration in order, loops carried out, each with its position.

    `lengths` are those of the loops of regions that `at` is in.
    """
    for instruction in body:
        if isinstance(instruction, Repeat):
            inside = (*lengths, instruction.count) if instruction.axis == "step" else lengths
            for index in range(instruction.count):
                yield from unroll(instruction.body, _along(at, instruction.axis, index), inside)
        elif isinstance(instruction, When):
            if at.iteration % instruction.every == 0:
                yield from unroll(instruction.body, at, lengths)
        elif isinstance(instruction, Branch):
            taken = instruction.then if _is_at(instruction, at, lengths) else instruction.otherwise
            yield from unroll(taken, at, lengths)
        else:
            yield instruction, at


def _is_at(branch: Branch, at: Position, lengths: tuple[int, ...]) -> bool:
    if not branch.depth:
        return branch.at == "first" and at.iteration == 0
    step = at.steps[branch.depth - 1]
    return step == (0 if branch.at == "first" else lengths[branch.depth - 1] - 1)


def _chunks(body: tuple[Instruction, ...]) -> int:
    for instruction in body:
        if isinstance(instruction, Repeat):
            within = instruction.axis == "step"
            found = _chunks(instruction.body) if within else instruction.count
            return found if within or instruction.axis == "chunk" else 1
        if isinstance(instruction, When | Branch):
            inside = instruction.body if isinstance(instruction, When) else instruction.then
            if (found := _chunks(inside)) > 1:
                return found
    return 1


def _along(at: Position, axis: Axis, index: int) -> Position:
    """In the inner loop of everything: `dataclasses.replace` takes five times as long."""
    iteration, rank = at.iteration, at.rank
    match axis:
        case "step":
            return Position(iteration, rank, steps=(*at.steps, index))
        case "chunk":
            return Position(iteration, rank, index, at.epoch, at.minibatch, 0, at.steps)
        case "epoch":
            return Position(iteration, rank, at.chunk, index, 0, 0, at.steps)
        case "minibatch":
            return Position(iteration, rank, at.chunk, at.epoch, index, 0, at.steps)
        case "micro_batch":
            return Position(iteration, rank, at.chunk, at.epoch, at.minibatch, index, at.steps)
