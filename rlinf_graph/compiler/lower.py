"""Graph and plan to program. Pure: no cost, no choice, nothing that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlinf_graph.compiler.lower_loops import Loops
from rlinf_graph.dsl.node import definitions
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Place, Port, Role, Unit
from rlinf_graph.ir.plan import Leaf, Placement, Plan, SyncPlan, Turn, devices_of, leaves_of
from rlinf_graph.ir.position import Part, Select
from rlinf_graph.ir.program import (
    Accumulate,
    Acquire,
    Advance,
    Await,
    Branch,
    Channel,
    Instruction,
    Load,
    Offload,
    OptimizerStep,
    Program,
    Publish,
    Release,
    Repartition,
    Repeat,
    Ring,
    Run,
    When,
    WorkerGroup,
)
from rlinf_graph.ir.wiring import Wire, Wiring, wiring
from rlinf_graph.ir.work import Generate

STEPS_AHEAD = 3
"""Steps of a loop that an edge inside it holds at most: one comes, one goes, one is carried."""


@dataclass(frozen=True)
class _Hold:
    """A ring that a node takes part in, at a position."""

    ring: str
    position: int
    per: Literal["iteration", "micro_batch"]


def lower(graph: Graph, plan: Plan) -> Program:
    """The program of a checked plan.

    Args:
        graph: after the passes: its volumes are known.
        plan: as verified by `check_plan`.
    """
    rings, holds = _rings(plan.placement)
    lag = max((sync.staleness for sync in plan.syncs.values()), default=0)
    wires = wiring(graph)
    lowering = _Lowering(graph, plan, holds, wires)
    return Program(
        name=graph.name,
        groups=tuple(lowering.group(n) for n in graph.nodes if works(n)),
        channels=tuple(_channels(graph, wires, capacity=lag + 1)),
        rings=tuple(rings),
    )


def works(node: Node) -> bool:
    """Whether a node has workers: regions and deliveries of weights are carried out by others."""
    return node.role not in (Role.SYNC, Role.REGION)


def is_host(node: Node) -> bool:
    """Whether a node works beside the devices."""
    return definitions[node.type].type.place is Place.HOST


def takes_midway(node: Node) -> bool:
    """Whether a node can take new weights while it generates: no evaluation, which is of one
    version, and no step of a dialog."""
    return isinstance(node.work, Generate) and node.role is Role.COMPUTE and not node.region


def interrupted(graph: Graph, plan: Plan, node: Node) -> bool:
    """Whether new weights cut what a node generates."""
    ports = {use.delivered for use in node.models}
    syncs = (sync for port, sync in graph.deliveries().items() if port in ports)
    cuts = any(plan.syncs.get(sync.name, SyncPlan()).interrupt for sync in syncs)
    return cuts and takes_midway(node)


def host_chunks(graph: Graph, plan: Plan, node: Node) -> int:
    """The parts in which a host node takes its stream: as its producers emit it."""
    if node.unit is Unit.BATCH or node.role in (Role.SOURCE, Role.REGION):
        return 1
    if node.region:
        return plan.regions.get(node.region, 1)
    producers = {graph.node(edge.source.node).name for edge in node.inputs}
    return max((chunks_of(graph, plan, graph.node(p)) for p in sorted(producers)), default=1)


def chunks_of(graph: Graph, plan: Plan, node: Node) -> int:
    """The parts in which any node emits."""
    if is_host(node) or node.region:
        return host_chunks(graph, plan, node)
    return plan.settings(node.name).chunks


def once(graph: Graph, node: Node) -> bool:
    """Whether only the first iteration needs what a node makes: a state begins with it."""
    edges = graph.out_of(node.name)
    return bool(edges) and all(
        not edge.lag and (target.role is Role.STATE or (works(target) and once(graph, target)))
        for edge in edges
        for target in (graph.node(edge.target),)
    )


def cadence(graph: Graph, node: Node) -> int:
    """In every how many iterations a node runs; a source runs as often as its readers."""
    if node.role is Role.EVALUATE:
        return node.option("every") or 1
    readers = [graph.node(edge.target) for edge in graph.out_of(node.name)]
    if node.role is Role.SOURCE and readers:
        return min(cadence(graph, reader) for reader in readers)
    return 1


@dataclass(frozen=True)
class _Lowering:
    graph: Graph
    plan: Plan
    holds: dict[str, list[_Hold]]
    wiring: Wiring

    def group(self, node: Node) -> WorkerGroup:
        host = is_host(node)
        body = self._train(node) if node.role is Role.TRAIN else self._compute(node)
        return WorkerGroup(
            name=node.name,
            ranks=1 if host else self.plan.settings(node.name).parallel.dp,
            devices=() if host else self.plan.devices(node.name),
            body=self._whole(node, body),
        )

    def _compute(self, node: Node) -> tuple[Instruction, ...]:
        loops = self._loops(node)
        chunks = chunks_of(self.graph, self.plan, node)
        streams = node.unit is not Unit.BATCH and bool(loops.ways)
        select = Select(Part.CHUNK, chunks) if streams else Select(Part.ALL)
        samples = node.volume[0].samples if node.volume else self._samples(node)
        inner = (
            *(Advance(node.name) for _ in [0] if node.role is Role.SOURCE),
            *loops.receive(select),
            Run(node.name, samples // chunks),
            *loops.send(),
        )
        held = self._held(node, "micro_batch", inner)
        loop: tuple[Instruction, ...] = (Repeat("chunk", chunks, held),) if streams else held
        return (*self._awaits(node), *loops.around(loop))

    def _train(self, node: Node) -> tuple[Instruction, ...]:
        loops = self._loops(node)
        settings, samples = self.plan.settings(node.name), self._samples(node)
        minibatch = node.option("minibatch") or samples
        width = settings.parallel.dp * (settings.micro_batch or minibatch // settings.parallel.dp)
        select = Select(
            part=Part.MINIBATCH,
            count=samples // minibatch,
            micro_batches=minibatch // width,
            permute=node.option("epochs") > 1,
            balanced=settings.balanced and settings.parallel.dp > 1,
        )
        micro = (
            *loops.receive(select),
            *(Repartition(node.name) for _ in [0] if select.balanced),
            Accumulate(node.name, width),
        )
        step = (
            Repeat("micro_batch", select.micro_batches, micro),
            OptimizerStep(node.name),
        )
        minibatches = Repeat("minibatch", select.count, self._held(node, "micro_batch", step))
        return (
            *loops.around((Repeat("epoch", node.option("epochs"), (minibatches,)),)),
            Publish(node.models[0].model, node.name),
        )

    def _loops(self, node: Node) -> Loops:
        ways, wires = self.wiring.into(node.name), self.wiring.out_of(node.name)
        return Loops(self.graph, node, ways, wires)

    def _whole(self, node: Node, body: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
        """The body with what happens around it once an iteration."""
        if not is_host(node) and not self.plan.settings(node.name).resident:
            body = (Load(node.name), *body, Offload(node.name))
        every = cadence(self.graph, node)
        body = (When(every, body),) if every > 1 else body
        body = (Branch(0, "first", body),) if once(self.graph, node) else body
        return self._held(node, "iteration", body)

    def _held(self, node: Node, per: str, body: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
        """The body between the rings that are taken once per iteration, or per micro-batch."""
        holds = [hold for hold in self.holds.get(node.name, []) if hold.per == per]
        return (
            *(Acquire(hold.ring, hold.position) for hold in holds),
            *body,
            *(Release(hold.ring, hold.position) for hold in reversed(holds)),
        )

    def _awaits(self, node: Node) -> list[Instruction]:
        """A reader of a trained model takes over the version it is due."""
        trainers, syncs = self.graph.trainers(), self.graph.deliveries()
        awaits: list[Instruction] = []
        for use in node.models:
            if use.model not in trainers or use.port is Port.FROZEN:
                continue
            if use.port is Port.TRAINED:
                awaits.append(Await(use.model, node.name, 0, "copy"))
            elif delivery := syncs.get((use.model, use.served)):
                sync = self.plan.syncs.get(delivery.name, SyncPlan())
                made = Await(
                    model=use.model,
                    node=node.name,
                    staleness=sync.staleness,
                    method=sync.method,
                    every=delivery.option("every"),
                    served=use.served,
                    decay=delivery.models[0].decay,
                    interrupt=sync.interrupt and takes_midway(node),
                )
                awaits.append(made)
        return awaits

    def _samples(self, node: Node) -> int:
        if not node.inputs:
            return 1
        return self.graph.volume(node, node.inputs[0].source).samples


def _channels(graph: Graph, wires: Wiring, capacity: int) -> list[Channel]:
    return [
        Channel(
            edge=wire.name,
            source=wire.source,
            target=wire.target,
            param=wire.param,
            samples=graph.node(wire.source.node).volume[wire.source.output].samples,
            capacity=STEPS_AHEAD if wire.depth else capacity + wire.lag + _read_ahead(graph, wire),
            depth=wire.depth,
        )
        for wire in wires.wires
    ]


def _read_ahead(graph: Graph, wire: Wire) -> int:
    """Moments that are read before they are needed: the next prompts are there in time."""
    node = graph.node(wire.source.node)
    return int(node.role is Role.SOURCE)


def _rings(placement: Placement) -> tuple[list[Ring], dict[str, list[_Hold]]]:
    """One ring for each `turn` of the tree; outer rings first in every node's list."""
    rings: list[Ring] = []
    holds: dict[str, list[_Hold]] = {}

    def visit(part: Placement) -> None:
        if isinstance(part, Leaf):
            return
        if isinstance(part, Turn):
            name = f"turn {len(rings) + 1}"
            positions = [tuple(leaf.node for leaf in leaves_of(p)) for p in part.parts]
            rings.append(Ring(name, tuple(positions), devices_of(part)))
            for position, names in enumerate(positions):
                for node in names:
                    holds.setdefault(node, []).append(_Hold(name, position, part.per))
        for inner in part.parts:
            visit(inner)

    visit(placement)
    return rings, holds
