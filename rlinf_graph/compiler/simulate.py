"""The interpreter that only says how long things take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.constants import STEP_SECONDS
from rlinf_graph.compiler.cost.interruption import again_seconds
from rlinf_graph.compiler.cost.sync import Method
from rlinf_graph.compiler.lower import cadence, interrupted, is_host
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.interpreter import Interpreter
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.position import Moment, Position
from rlinf_graph.ir.program import (
    Accumulate,
    Acquire,
    Await,
    Branch,
    Instruction,
    Load,
    Offload,
    OptimizerStep,
    Program,
    Recv,
    Repeat,
    Run,
    Send,
    When,
    WorkerGroup,
)
from rlinf_graph.ir.timeline import Event

MOST_MICRO_BATCHES = 8
"""Of a minibatch, in a simulation: finer ones change nothing but when its first one can start."""


MOST_STEPS = 8
"""Of a loop, in a simulation: more of them only repeat how its nodes wait for each other."""


@dataclass(frozen=True)
class SimulatedMachine:
    """Durations from the cost model; batches are not there.

    A node that runs in every k-th iteration costs a k-th of its time in each, so that an iteration
    is the average one. `merged` says how many micro-batches of a node stand for one, `runs` how
    often a node runs in an iteration here, `stretched` how many steps of its loops one step stands
    for, `leading` which edges come first of those that a node takes in together.
    """

    graph: Graph
    plan: Plan
    cluster: Cluster
    costs: CostModel
    merged: Mapping[str, int] = field(default_factory=dict[str, int])
    runs: Mapping[str, int] = field(default_factory=dict[str, int])
    stretched: Mapping[str, float] = field(default_factory=dict[str, float])
    leading: frozenset[str] = frozenset()
    _known: dict[tuple[str, Instruction], float] = field(
        default_factory=dict[tuple[str, Instruction], float], compare=False
    )

    def perform(
        self,
        group: WorkerGroup,
        instruction: Instruction,
        at: Position,  # noqa: ARG002  of the protocol: every position costs the same
    ) -> float:
        """Seconds of an instruction."""
        key = (group.name, instruction)
        if key not in self._known:
            self._known[key] = self._seconds(group, instruction)
        return self._known[key]

    def _seconds(self, group: WorkerGroup, instruction: Instruction) -> float:
        node = self.graph.node(group.name)
        every = cadence(self.graph, node)
        runs = self.runs.get(node.name) or max(1, _runs(group.body))
        if is_host(node):
            if not isinstance(instruction, Run):
                return 0.0
            processes = self.plan.host.get(node.name, 1)
            seconds = self.costs.host(node, processes, self.cluster.groups[0]).seconds
            return seconds / runs / every + self._more_s(node, group, runs)
        settings, devices = self.plan.settings(node.name), self.plan.devices(node.name)
        match instruction:
            case Run():
                seconds = self.costs.node(node, devices, settings).seconds
                return (seconds + self._again_s(node)) / runs / every
            case Accumulate(samples=samples):
                each = self.costs.accumulate_seconds(node, devices, settings, samples)
                return each * self.merged.get(node.name, 1)
            case OptimizerStep():
                return self.costs.optimizer_step_seconds(node, devices, settings)
            case Load():
                return self.costs.node(node, devices, settings).load_s / every
            case Offload():
                return self.costs.node(node, devices, settings).offload_s / every
            case Await(model=model, method=method, every=deliveries):
                return self.sync_seconds(group, model, method) / deliveries
            case _:
                return 0.0

    def _again_s(self, node: Node) -> float:
        """To read again what a node has said, for weights that cut it."""
        if not interrupted(self.graph, self.plan, node):
            return 0.0
        settings, devices = self.plan.settings(node.name), self.plan.devices(node.name)
        return again_seconds(self.costs, self.graph, node, devices, settings)

    def _more_s(self, node: Node, group: WorkerGroup, runs: int) -> float:
        """What more chunks than one in each step of a loop cost a host node."""
        more = STEP_SECONDS * node.steps * (group.chunks - 1)
        return more / runs if node.region else 0.0

    def sync_seconds(self, group: WorkerGroup, model: str, method: Method) -> float:
        """Seconds of one delivery of weights, spread over the iterations of an evaluation."""
        trainer = self.graph.trainers()[model]
        source = self.plan.devices(trainer.name)
        every = cadence(self.graph, self.graph.node(group.name))
        return self.costs.sync(model, source, group.devices, method).seconds / every

    def take(
        self, group: WorkerGroup, recv: Recv, at: Position, moment: Moment, rows: NDArray[np.int64]
    ) -> None:
        """Nothing is there to take."""

    def handover(self, instruction: Recv | Acquire | Await, at: Position, samples: int) -> float:
        """Once for the edges that come together, and once for all micro-batches of a minibatch."""
        if isinstance(instruction, Recv):
            again = at.micro_batch or at.epoch or instruction.edge not in self.leading
            times = self.stretched.get(instruction.edge, 1.0) if at.steps else 1.0
            return 0.0 if again else self.costs.handover(samples) * times
        return self.costs.handover(samples)

    def put(
        self, group: WorkerGroup, send: Send, at: Position, moment: Moment, rows: NDArray[np.int64]
    ) -> None:
        """Nothing is there to put: the share of the position counts as put."""

    def drop(self, edge: str, moment: Moment) -> None:
        """Nothing is held."""

    def finish(self, group: WorkerGroup, at: Position) -> None:
        """Nothing is reported."""


def simulate(
    program: Program, graph: Graph, plan: Plan, cluster: Cluster, costs: CostModel,
    iterations: int = 6, *, exact: bool = False,
) -> list[Event]:  # fmt: skip
    """The timeline of a program by the cost model; rank 0 stands for each group.

    `exact` simulates every instruction of every rank, as a run would carry it out.
    """
    leading = frozenset(ways[0] for node in graph.nodes if (ways := _edges_into(program, node)))
    if exact:
        runs = {group.name: _runs(group.body) for group in program.groups}
        machine = SimulatedMachine(graph, plan, cluster, costs, runs=runs, leading=leading)
        return Interpreter(program, machine).run(iterations)
    groups, merged = list[WorkerGroup](), dict[str, int]()
    for group in program.groups:
        body, times = _simplified(group.body)
        groups.append(replace(group, body=body))
        merged[group.name] = times
    runs = {group.name: max(1, _runs(group.body)) for group in groups}
    factors = {g.name: _runs(g.body) / runs[g.name] for g in program.groups}
    stretched = {channel.edge: factors[channel.target] for channel in program.channels}
    machine = SimulatedMachine(graph, plan, cluster, costs, merged, runs, stretched, leading)
    return Interpreter(replace(program, groups=tuple(groups)), machine, one_rank=True).run(
        iterations
    )


def _edges_into(program: Program, node: Node) -> list[str]:
    return [channel.edge for channel in program.channels if channel.target == node.name]


def _runs(body: tuple[Instruction, ...]) -> int:
    """How often a list runs its node in an iteration."""
    total = 0
    for instruction in body:
        match instruction:
            case Run():
                total += 1
            case Repeat(count=count, body=inner):
                total += count * _runs(inner)
            case When(body=inner) | Branch(then=inner):
                total += _runs(inner)
            case _:
                pass
    return total


def _simplified(body: tuple[Instruction, ...]) -> tuple[tuple[Instruction, ...], int]:
    """What runs now and then, in every iteration; and few micro-batches that stand for many.

    Returns the body and how many micro-batches each of its own stands for.
    """
    made, times = list[Instruction](), 1
    for instruction in body:
        if isinstance(instruction, When):
            inner, times = _simplified(instruction.body)
            made += inner
        elif isinstance(instruction, Repeat) and instruction.axis == "micro_batch":
            count = max(n for n in range(1, MOST_MICRO_BATCHES + 1) if instruction.count % n == 0)
            times = instruction.count // count
            made.append(Repeat("micro_batch", count, tuple(map(_widened(count), instruction.body))))
        elif isinstance(instruction, Repeat):
            inner, inside = _simplified(instruction.body)
            times = max(times, inside)
            most = MOST_STEPS if instruction.axis == "step" else instruction.count
            made.append(replace(instruction, body=inner, count=min(instruction.count, most)))
        else:
            made.append(instruction)
    return tuple(made), times


def _widened(micro_batches: int) -> Callable[[Instruction], Instruction]:
    def widen(instruction: Instruction) -> Instruction:
        if not isinstance(instruction, Recv):
            return instruction
        select = replace(instruction.select, micro_batches=micro_batches, permute=False)
        return replace(instruction, select=select)

    return widen
