"""Carries out instructions for real, one after another."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.backends.edges import Edges
from rlinf_graph.backends.engines import Engines, Kept, Snapshot
from rlinf_graph.backends.environments import Registers
from rlinf_graph.backends.failure import failed
from rlinf_graph.backends.rank import Rank
from rlinf_graph.backends.record import Recorder
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.position import Moment, Position
from rlinf_graph.ir.program import (
    Accumulate,
    Acquire,
    Await,
    Gather,
    Instruction,
    Keep,
    Load,
    Offload,
    OptimizerStep,
    Program,
    Publish,
    Recv,
    Repartition,
    Run,
    Send,
    WorkerGroup,
)
from rlinf_graph.nodes.engine import Engine


class LocalMachine:
    """The work of every rank, done in this process; each rank has its own registers."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        program: Program,
        engines: Engines,
        recorder: Recorder,
        seed: int,
    ) -> None:
        """Nothing has run; data sources stand at their beginning."""
        self.registers: dict[str, Any] = {}
        self._graph, self._engines, self._recorder = graph, engines, recorder
        self._depths = {channel.edge: channel.depth for channel in program.channels}
        envs = Registers(graph, plan, seed)
        self._ranks = {
            (group.name, number): Rank(graph, group, number, engines, envs, self.registers, seed)
            for group in program.groups
            for number in range(group.ranks)
        }
        self._edges = Edges()
        self._snapshots: dict[str, dict[int, Snapshot]] = defaultdict(dict[int, Snapshot])
        self._kept = Kept.of(graph, plan)
        self._reduced: dict[str, tuple[Position, float]] = {}

    def perform(self, group: WorkerGroup, instruction: Instruction, at: Position) -> float:
        """Do it; seconds by the clock.

        Raises:
            CompileError: RG0607, with the cause, when the user's code or an engine fails.
        """
        start = time.perf_counter()
        try:
            self._perform(group, instruction, at)
        except CompileError:
            raise
        except Exception as error:
            raise failed(self._graph.node(group.name), at, error) from error
        return time.perf_counter() - start

    def _perform(self, group: WorkerGroup, instruction: Instruction, at: Position) -> None:
        rank, metrics = self._ranks[group.name, at.rank], self._recorder.metrics[at.iteration]
        match instruction:
            case Run():
                rank.run(at, metrics)
            case Accumulate():
                rank.accumulate(at, metrics)
            case OptimizerStep():
                rank.optimizer_step(self._summed(group, at), metrics)
            case Publish(model=model):
                if at.rank == 0:
                    self._publish(rank.trainer, model, at.iteration + 1)
            case Await():
                self._adopt(group, instruction, at)
            case Load() | Offload():
                rank.move(on=isinstance(instruction, Load))
            case Keep() | Gather():
                rank.aside(instruction)
            case Repartition():
                rank.repartition()
            case _:
                pass

    def take(
        self, group: WorkerGroup, recv: Recv, at: Position, moment: Moment, rows: NDArray[np.int64]
    ) -> None:
        """Bind samples of an edge to a parameter of the rank's node."""
        taken = self._edges.take(recv.edge, moment, rows)
        self._ranks[group.name, at.rank].bound[recv.param] = taken

    def handover(self, instruction: Recv | Acquire | Await, at: Position, samples: int) -> float:  # noqa: ARG002  of the protocol
        """Nothing: one process has it all."""
        return 0.0

    def put(
        self, group: WorkerGroup, send: Send, at: Position, moment: Moment, rows: NDArray[np.int64]
    ) -> None:
        """Lay an output on an edge.

        Raises:
            CompileError: RG0607, for samples that are not the node's.
        """
        value = self._ranks[group.name, at.rank].outgoing(send)
        if not self._depths[send.edge]:
            self._recorder.saw(group.name, at.iteration, value)
        try:
            self._edges.put(send.edge, moment, rows, value)
        except ValueError as error:
            raise failed(self._graph.node(group.name), at, error) from error

    def drop(self, edge: str, moment: Moment) -> None:
        """Forget a moment of an edge."""
        self._edges.drop(edge, moment)

    def finish(self, group: WorkerGroup, at: Position) -> None:  # noqa: ARG002  of the protocol
        """Tell the recorder."""
        self._recorder.finish(at.iteration)

    def trainers(self, group: WorkerGroup) -> list[Engine]:
        """The engines of all ranks of a train node."""
        return [self._engines.trainer(group, rank) for rank in range(group.ranks)]

    def save(self, group: WorkerGroup, path: Path) -> None:
        """Write the model of a train node as a folder that transformers loads."""
        self._engines.trainer(group, 0).save(path)

    def _publish(self, engine: Engine, model: str, version: int) -> None:
        """Keep a copy of the trained weights for those who read this version."""
        kept = self._snapshots[model]
        kept[version] = [(shard.name, shard.values.clone()) for shard in engine.shards()]
        for old in self._kept.past(model, list(kept), version):
            del kept[old]

    def _adopt(self, group: WorkerGroup, awaited: Await, at: Position) -> None:
        for version in self._engines.due(group, at.rank, awaited, at.iteration):
            weights = self._snapshots[awaited.model][version]
            self._engines.adopt(group, at.rank, awaited, version, weights)

    def _summed(self, group: WorkerGroup, at: Position) -> float:
        """The weight of all ranks; the first of a step sums the gradients for all of them."""
        place = Position(at.iteration, 0, 0, at.epoch, at.minibatch, 0)
        if self._reduced.get(group.name, (None, 0.0))[0] != place:
            _sum_gradients(self.trainers(group))
            weight = sum(self._ranks[group.name, rank].weight for rank in range(group.ranks))
            self._reduced[group.name] = (place, weight)
        return self._reduced[group.name][1]


def _sum_gradients(engines: list[Engine]) -> None:
    """All-reduce inside one process: afterwards every rank holds the sum."""
    if len(engines) == 1:
        return
    held = [engine.gradients() for engine in engines]
    for name, first in held[0].items():
        total = first.clone()
        for other in held[1:]:
            total += other[name]
        for gradients in held:
            gradients[name].copy_(total)
