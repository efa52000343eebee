"""The interpreter that only says how long things take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.lower import cadence, is_host
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.interpreter import Interpreter
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.program import (
    Accumulate,
    Await,
    Instruction,
    Load,
    Offload,
    OptimizerStep,
    Position,
    Program,
    Recv,
    Run,
    Send,
    WorkerGroup,
)
from rlinf_graph.ir.timeline import Event


@dataclass(frozen=True)
class SimulatedMachine:
    """Durations from the cost model; batches are not there.

    A node that runs in every k-th iteration costs a k-th of its time in each, so that an iteration
    is the average one.
    """

    graph: Graph
    plan: Plan
    cluster: Cluster
    costs: CostModel

    def perform(self, group: WorkerGroup, instruction: Instruction, at: Position) -> float:
        """Seconds of an instruction."""
        node = self.graph.node(group.name)
        if is_host(node):
            if not isinstance(instruction, Run):
                return 0.0
            processes = self.plan.host.get(node.name, 1)
            return self.costs.host(node, processes, self.cluster.groups[0]).seconds / group.chunks
        settings, devices = self.plan.settings(node.name), self.plan.devices(node.name)
        match instruction:
            case Run():
                every = cadence(self.graph, node)
                return self.costs.chunk_seconds(node, devices, settings) / every
            case Accumulate(samples=samples):
                return self.costs.accumulate_seconds(node, devices, settings, samples)
            case OptimizerStep():
                return self.costs.optimizer_step_seconds(node, devices, settings)
            case Load():
                return self.costs.node(node, devices, settings).load_s
            case Offload():
                return self.costs.node(node, devices, settings).offload_s
            case Await(model=model, method=method):
                return self.sync_seconds(group, model, method)
            case _:
                return 0.0

    def sync_seconds(self, group: WorkerGroup, model: str, method: str) -> float:
        """Seconds of one delivery of weights, spread over the iterations of an evaluation."""
        trainer = self.graph.trainers()[model]
        source = self.plan.devices(trainer.name)
        every = cadence(self.graph, self.graph.node(group.name))
        return self.costs.sync(model, source, group.devices, method)[0] / every

    def take(self, group: WorkerGroup, recv: Recv, at: Position, rows: NDArray[np.int64]) -> None:
        """Nothing is there to take."""

    def put(self, group: WorkerGroup, send: Send, at: Position) -> None:
        """Nothing is there to put: the share of the position counts as put."""

    def drop(self, edge: str, iteration: int) -> None:
        """Nothing is held."""

    def finish(self, group: WorkerGroup, at: Position) -> None:
        """Nothing is reported."""


def simulate(
    program: Program, graph: Graph, plan: Plan, cluster: Cluster, costs: CostModel,
    iterations: int = 6,
) -> list[Event]:  # fmt: skip
    """The timeline of a program by the cost model; rank 0 stands for each group."""
    machine = SimulatedMachine(graph, plan, cluster, costs)
    return Interpreter(_averaged(program), machine, one_rank=True).run(iterations)


def _averaged(program: Program) -> Program:
    """The program with what runs now and then in every iteration, to be counted in shares."""
    from dataclasses import replace

    from rlinf_graph.ir.program import When

    def flat(body: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
        return tuple(
            inner
            for instruction in body
            for inner in (
                flat(instruction.body) if isinstance(instruction, When) else (instruction,)
            )
        )

    groups = tuple(replace(group, body=flat(group.body)) for group in program.groups)
    return replace(program, groups=groups)
