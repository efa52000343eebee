"""Measure the nodes of a pipeline one after another, each alone, as a rank of a run does its work.

Inputs are real: what a node puts out at its largest size is what its consumers are measured with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from rlinf_graph.backends.cores import on_cores
from rlinf_graph.backends.engines import Engines, Instance
from rlinf_graph.backends.environments import Registers
from rlinf_graph.backends.failure import failed
from rlinf_graph.backends.rank import Rank
from rlinf_graph.backends.slots import project
from rlinf_graph.backends.stopwatch import timed, watched
from rlinf_graph.dsl.node import definitions
from rlinf_graph.ir import packed
from rlinf_graph.ir.batch import Batch, Source, TokenBatch
from rlinf_graph.ir.batches import Examples, Rollouts
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.flow import in_order
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.measurement import Kind, Measurement, quantiles
from rlinf_graph.ir.node_type import Place, Role, Unit
from rlinf_graph.ir.plan import Leaf, NodePlan, PipelineRef, Plan, Turn
from rlinf_graph.ir.position import Position
from rlinf_graph.ir.program import Await, WorkerGroup
from rlinf_graph.ir.wiring import made_by
from rlinf_graph.ir.work import Generate
from rlinf_graph.nodes.engine import Engine
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.train import tokenize_examples

SHARES = (16, 4, 2, 1)
"""Sizes: the node's batch in an iteration, divided by these."""

SHORTEST = 2
"""Tokens of the shorter responses that are measured beside the full ones."""

LONGEST_S = 60.0
"""A size that would take longer than this once is left out, and the nodes after it get less."""

START = Position(iteration=0, rank=0)


def bench_plan(graph: Graph, device: int) -> tuple[Plan, dict[str, WorkerGroup]]:
    """Every node alone on a device, with the engine that its model names; else with torch."""
    nodes = [node for node in graph.nodes if node.role not in (Role.SYNC, Role.REGION)]
    leaves = tuple(Leaf(node=n.name, devices=(device,)) for n in nodes if not _is_host(n))
    named = {node.name: _named_engine(graph, node) for node in nodes}
    plan = Plan(
        pipeline=PipelineRef(file="", name=graph.name),
        placement=Turn(parts=leaves),
        nodes={name: NodePlan(engine=engine) for name, engine in named.items() if engine},
    )
    return plan, {n.name: WorkerGroup(n.name, 1, plan.devices(n.name), ()) for n in nodes}


def _named_engine(graph: Graph, node: Node) -> str:
    engines = dict(graph.model(node.model).engines) if node.model else {}
    generates = "rollout" if isinstance(node.work, Generate) else ""
    return engines.get("train" if node.role is Role.TRAIN else generates, "")


class Bench:
    """Measures every node of a graph on one device, in this process."""

    def __init__(
        self,
        graph: Graph,
        cluster: Cluster,
        device: int,
        seed: int,
        initial: Mapping[str, str],
        hosted: Mapping[Instance, Engine] | None = None,
    ) -> None:
        """Load all models.

        Args:
            graph: after the passes.
            cluster: this machine's.
            device: its number in the cluster.
            seed: of every random draw.
            initial: folders to load first weights from, by model, instead of the declared ones.
            hosted: engines that live elsewhere.
        """
        self.graph, self.seed = graph, seed
        self.made: list[Measurement] = []
        plan, self._groups = bench_plan(graph, device)
        places = [(group, 0) for group in self._groups.values()]
        self._engines = Engines(
            graph, plan, cluster, places, seed=seed, initial=initial, hosted=hosted
        )
        self._cores = 1 if cluster.group_of(device).device.kind == "cpu" else 0
        self._registers: dict[str, Any] = {}
        self._environments = Registers(graph, plan, seed)
        self._ranks = {name: self._rank(graph, name) for name in self._groups}

    def nodes(self) -> Iterator[list[Measurement]]:
        """Measure node by node.

        Raises:
            CompileError: RG0607, with the cause, when the user's code or an engine fails.
        """
        with on_cores(self._cores):
            for node in in_order(self.graph):
                if node.role is Role.REGION:
                    continue
                self.made = []
                self.node(node)
                yield self.made

    def largest(self) -> tuple[str, Batch]:
        """The node that puts out the batch with the most bytes, and the batch."""
        found = [
            (packed.nbytes(output), name, output)
            for name, rank in self._ranks.items()
            for output in rank.outputs
            if isinstance(output, Batch)
        ]
        _size, name, batch = max(found, key=lambda each: each[:2])
        return name, batch

    def node(self, node: Node) -> None:
        """Measure a node at all its sizes and keep what it puts out."""
        try:
            if node.role is Role.SYNC:
                self._sync(node)
            elif node.role is Role.TRAIN:
                self._train(node)
            else:
                self._compute(node)
        except CompileError:
            raise
        except Exception as error:
            raise failed(node, START, error) from error

    def _compute(self, node: Node) -> None:
        rank = self._ranks[node.name]
        if _is_host(node):
            self._sizes(rank, "host", self._count(node))
            return
        samples = self._sizes(rank, "chunk", self._count(node))
        if isinstance(node.work, Generate) and node.option("max_tokens") > SHORTEST:
            shorter = max(SHORTEST, node.option("max_tokens") // 4)
            self._trial(self._with_option(node, "max_tokens", shorter), "chunk", samples)

    def _train(self, node: Node) -> None:
        rank, count = self._ranks[node.name], self._count(node)
        self._sizes(rank, "accumulate", min(count, node.option("minibatch") or count))
        rank.bound = self._inputs(node, min(count, max(SHARES)))

        def prepare() -> None:
            if not rank.weight:
                rank.accumulate(START, Metrics())

        seconds = timed(lambda: _step(rank), prepare)
        self.made.append(
            Measurement(node=node.name, kind="optimizer_step", samples=0, seconds=seconds)
        )

    def _sync(self, node: Node) -> None:
        model, served = node.models[0].model, node.models[0].served
        trainers, names = self.graph.trainers(), {n.name for n in self.graph.readers(model, served)}
        reader = next((g for g in self._groups.values() if g.name in names), None)
        if reader is None or model not in trainers:
            return
        engine, group = self._ranks[trainers[model].name].trainer, reader
        decay = node.models[0].decay
        versions = count(1)
        taken = Await(model, node.name, 0, "copy", served=served, decay=decay)

        def deliver() -> None:
            copies = [(shard.name, shard.values.clone()) for shard in engine.shards()]
            self._engines.adopt(group, 0, taken, next(versions), copies)

        seconds = timed(deliver)
        self.made.append(Measurement(node=node.name, kind="sync", samples=0, seconds=seconds))

    def _sizes(self, rank: Rank, kind: Kind, count: int) -> int:
        """Measure from small to large, as far as time allows; the largest size measured."""
        unit = self._group_size(rank.node) if kind != "accumulate" else 1
        units = count // unit
        whole = rank.node.unit is Unit.BATCH and kind != "accumulate"
        sizes = [count] if whole else sorted({units // s * unit for s in SHARES} - {0}) or [count]
        last = sizes[0]
        seconds = self._trial(rank, kind, last)
        for samples in sizes[1:]:
            if seconds * samples / last > LONGEST_S:
                break
            seconds, last = self._trial(rank, kind, samples), samples
        return last

    def _trial(self, rank: Rank, kind: Kind, samples: int) -> float:
        """Measure one size; the median seconds."""
        node = rank.node
        rank.bound = self._inputs(node, samples)
        if kind == "accumulate":
            seconds = timed(lambda: rank.accumulate(START, Metrics()))
            _step(rank)
            lengths = _lengths(rank.bound, rank.trainer)
            made = Measurement(
                node=node.name, kind=kind, samples=samples, lengths=lengths, seconds=seconds
            )
        else:
            with watched(self._engines.of(self._groups[node.name], 0)) as seen:
                seconds = timed(lambda: rank.run(START, Metrics()))
            made = self._ran(rank, kind, samples or len(rank.outputs[0]), seconds, seen)
        self.made.append(made)
        return made.median

    def _ran(
        self, rank: Rank, kind: Kind, samples: int, seconds: tuple[float, ...], seen: list[Rollouts]
    ) -> Measurement:
        made = Measurement(
            node=rank.node.name, kind=kind, samples=samples, seconds=seconds,
            lengths=_lengths(rank.bound),
        )  # fmt: skip
        if not seen:
            return made
        answers = seen[-1]
        return made.model_copy(
            update={
                "samples": len(answers),
                "group": max(1, len(answers) // max(1, samples)),
                "prompt_tokens": float(answers.prompt_lengths.double().mean()),
                "lengths": quantiles(answers.response_lengths.tolist()),
            }
        )

    def _inputs(self, node: Node, samples: int) -> dict[str, Batch]:
        """The first samples of every input."""
        rows = np.arange(samples)
        return {param: packed.select(self._output(source), rows)
                for param, source in self._sources(node).items()}  # fmt: skip

    def _sources(self, node: Node) -> dict[str, Source]:
        """What comes to each parameter at the beginning: in the first step of the loops around."""
        given = [edge for edge in node.inputs if edge.type != "Weights" and not edge.lag]
        return {edge.param: self.graph.entry_of(node, edge.source) for edge in given}

    def _output(self, source: Source) -> Batch:
        """What a node has put out; of a loop what one step of it has."""
        made, _leaving = made_by(self.graph, source)
        return project(self._ranks[made.node].outputs[made.output], made.field)

    def _count(self, node: Node) -> int:
        """Samples that all inputs have; 0 without inputs."""
        sources = self._sources(node).values()
        return min((len(self._output(source)) for source in sources), default=0)

    def _group_size(self, node: Node) -> int:
        """Samples of a prompt in what the node takes."""
        if not self._count(node):
            return 1
        batch = self._output(next(iter(self._sources(node).values())))
        return len(batch) // max(1, len(batch.group.unique()))

    def _rank(self, graph: Graph, name: str) -> Rank:
        group = self._groups[name]
        return Rank(graph, group, 0, self._engines, self._environments, self._registers, self.seed)

    def _with_option(self, node: Node, option: str, value: Any) -> Rank:
        options = tuple((n, value if n == option else old) for n, old in node.options)
        changed = replace(node, options=options)
        nodes = tuple(changed if n.name == node.name else n for n in self.graph.nodes)
        return self._rank(self.graph.with_nodes(nodes), node.name)


def _step(rank: Rank) -> None:
    rank.optimizer_step(rank.weight or 1.0, Metrics())


def _is_host(node: Node) -> bool:
    return definitions[node.type].type.place is Place.HOST


def _lengths(bound: Mapping[str, Batch], engine: Engine | None = None) -> tuple[float, ...]:
    """Of the sequences among the inputs; demonstrations are told in the engine's tokens."""
    for batch in bound.values():
        if isinstance(batch, Examples) and engine is not None:
            return quantiles(tokenize_examples(batch, engine).lengths.tolist())
        if isinstance(batch, TokenBatch):
            return quantiles(batch.lengths.tolist())
    return ()
