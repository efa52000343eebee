"""Carries out instructions for real, one after another."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.backends.failure import failed
from rlinf_graph.backends.local.edges import Edges, project
from rlinf_graph.backends.local.engines import Engines
from rlinf_graph.backends.record import Recorder
from rlinf_graph.dsl.model import Model
from rlinf_graph.dsl.node import definitions
from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.batches import Examples
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph, ModelDef, Node
from rlinf_graph.ir.program import (
    Accumulate,
    Await,
    Instruction,
    Load,
    Offload,
    OptimizerStep,
    Position,
    Publish,
    Recv,
    Run,
    Send,
    WorkerGroup,
)
from rlinf_graph.ir.value import FunctionRef
from rlinf_graph.nodes.engine import Engine
from rlinf_graph.nodes.execution import Execution, executing
from rlinf_graph.nodes.train import tokenize_examples, train_batch

Rank = tuple[str, int]


class LocalMachine:
    """The work of every rank, done in this process; each rank has its own registers."""

    def __init__(self, graph: Graph, engines: Engines, recorder: Recorder, seed: int) -> None:
        """Nothing has run; data sources stand at their beginning."""
        self._graph, self._engines, self._recorder, self._seed = graph, engines, recorder, seed
        self._edges = Edges()
        self._bound: dict[Rank, dict[str, Batch]] = defaultdict(dict[str, Batch])
        self._outputs: dict[Rank, tuple[Any, ...]] = {}
        self._weights: dict[Rank, float] = defaultdict(float)
        self._reduced: dict[str, Position] = {}
        self.registers: dict[str, Any] = {}

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
        match instruction:
            case Run():
                self._run(group, at)
            case Accumulate():
                self._accumulate(group, at)
            case OptimizerStep():
                self._optimizer_step(group, at)
            case Publish(model=model):
                if at.rank == 0:
                    self._engines.publish(group, model, at.iteration + 1)
            case Await(model=model):
                version = instruction.version(at.iteration)
                self._engines.adopt(group, at.rank, model, version)
            case Load():
                self._move(group, at, Load)
            case Offload():
                self._move(group, at, Offload)
            case _:
                pass

    def take(self, group: WorkerGroup, recv: Recv, at: Position, rows: NDArray[np.int64]) -> None:
        """Bind samples of an edge to a parameter of the rank's node."""
        taken = self._edges.take(recv.edge, at.iteration, rows)
        self._bound[group.name, at.rank][recv.param] = taken

    def put(self, group: WorkerGroup, send: Send, at: Position) -> NDArray[np.int64]:
        """Lay an output on an edge."""
        value = project(self._outputs[group.name, at.rank][send.output], send.field)
        self._recorder.saw(group.name, at.iteration, value)
        return self._edges.put(send.edge, at.iteration, value)

    def drop(self, edge: str, iteration: int) -> None:
        """Forget an iteration of an edge."""
        self._edges.drop(edge, iteration)

    def finish(self, group: WorkerGroup, at: Position) -> None:  # noqa: ARG002  of the protocol
        """Tell the recorder."""
        self._recorder.finish(at.iteration)

    def _run(self, group: WorkerGroup, at: Position) -> None:
        node = self._graph.node(group.name)
        models = {u.param: _handle(self._graph.model(u.model)) for u in node.models}
        arguments = {**self._bound[group.name, at.rank], **models, **options_of(node)}
        with executing(self._execution(group, at)):
            made = definitions[node.type].kernel(**arguments)
        self._outputs[group.name, at.rank] = made if isinstance(made, tuple) else (made,)

    def _accumulate(self, group: WorkerGroup, at: Position) -> None:
        node, key = self._graph.node(group.name), (group.name, at.rank)
        engine = self._trainer(group, at)
        with executing(self._execution(group, at)) as execution:
            batch = train_batch(_tokenized(self._bound[key], engine))
            weight = engine.accumulate(batch, node.option("loss"), execution.metrics)
        self._weights[key] += weight

    def _optimizer_step(self, group: WorkerGroup, at: Position) -> None:
        """The first rank of a step sums for all of them."""
        place = Position(at.iteration, 0, 0, at.epoch, at.minibatch, 0)
        if self._reduced.get(group.name) != place:
            self._reduced[group.name] = place
            _sum_gradients(self._engines.trainers(group))
            total = sum(self._weights[group.name, rank] for rank in range(group.ranks))
            for rank in range(group.ranks):
                self._weights[group.name, rank] = total
        optimizer = self._graph.node(group.name).option("optimizer")
        weight = self._weights.pop((group.name, at.rank))
        metrics = self._recorder.metrics[at.iteration]
        self._trainer(group, at).optimizer_step(optimizer, weight, metrics)

    def _move(self, group: WorkerGroup, at: Position, way: type) -> None:
        for engine in self._engines.of(group, at.rank).values():
            engine.load() if way is Load else engine.offload()

    def _trainer(self, group: WorkerGroup, at: Position) -> Engine:
        return self._engines.trainers(group)[at.rank]

    def _execution(self, group: WorkerGroup, at: Position) -> Execution:
        return Execution(
            node=group.name,
            iteration=at.iteration,
            seed=self._seed,
            engines=self._engines.of(group, at.rank),
            versions=self._engines.versions(group, at.rank),
            registers=self.registers,
            metrics=self._recorder.metrics[at.iteration],
        )


def options_of(node: Node) -> dict[str, Any]:
    """A node's options as its kernel takes them: functions themselves, not references."""
    return {
        name: value.function if isinstance(value, FunctionRef) else value
        for name, value in node.options
    }


def _handle(model: ModelDef) -> Model:
    """What a kernel gets for a model; its engine it finds by the parameter's name."""
    return Model(model.path, name=model.name, head=cast("Any", model.head))


def _tokenized(bound: Mapping[str, Batch], engine: Engine) -> dict[str, Batch]:
    return {
        param: tokenize_examples(batch, engine) if isinstance(batch, Examples) else batch
        for param, batch in bound.items()
    }


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
