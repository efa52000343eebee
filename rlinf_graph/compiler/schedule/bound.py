"""What no schedule of a plan can beat.

Two arguments. A device cannot finish an iteration sooner than the sum of what it has to do in it.
And a chain of nodes from those who read a model to the one that trains it has to be walked once
in `staleness + 1` iterations: a stream of chunks through it takes, for each node, its own time
plus one chunk of every other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import networkx as nx

from rlinf_graph.compiler.lower import cadence, is_host
from rlinf_graph.compiler.schedule.layouts import Option
from rlinf_graph.compiler.schedule.memory import representatives
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.plan import Leaf

SyncCost = Callable[[str, tuple[int, ...], tuple[int, ...]], float]


@dataclass
class Bounds:
    """Lower bounds for the plans of one graph.

    Attributes:
        graph: after the passes.
        sync_seconds: of one delivery of weights.
        host_seconds: of the busiest host node in an iteration.
    """

    graph: Graph
    sync_seconds: SyncCost
    host_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Find the chains from the readers of each trained model to its trainer."""
        self._chains = _chains(self.graph)
        self._every = {node.name: cadence(self.graph, node) for node in self.graph.nodes}

    def load(
        self, leaves: list[Leaf], options: Mapping[str, Option], offloaded: frozenset[str]
    ) -> float:
        """Seconds an iteration of the busiest device."""
        loads: dict[int, float] = {}
        for leaf in leaves:
            busy = self.busy(leaf, leaves, options, offloaded)
            for device in representatives(leaves):
                if device in leaf.devices:
                    loads[device] = loads.get(device, 0.0) + busy
        return max(self.host_seconds, *loads.values())

    def busy(
        self,
        leaf: Leaf,
        leaves: list[Leaf],
        options: Mapping[str, Option],
        offloaded: frozenset[str],
    ) -> float:
        """Seconds an iteration of one node: work, switches and weights that it takes over."""
        cost = options[leaf.node].cost
        busy = cost.seconds + self._syncs(leaf, leaves)
        if leaf.node in offloaded:
            busy += cost.load_s + cost.offload_s
        return busy / self._every[leaf.node]

    def latency(self, options: Mapping[str, Option]) -> float:
        """Seconds from the first sample of an iteration to its new weights."""
        return max((self._walk(chain, options) for chain in self._chains), default=0.0)

    def _walk(self, chain: list[Node], options: Mapping[str, Option]) -> float:
        total = ends = rest = 0.0
        for node in chain:
            if is_host(node) or node.name not in options:
                if node.unit is Unit.BATCH:  # a barrier: what comes before is over
                    total, ends, rest = total + ends + rest, 0.0, 0.0
                continue
            whole, last = self._times(node, options[node.name])
            ends, rest = ends + last, max(rest, whole - last)
        return total + ends + rest

    def _times(self, node: Node, option: Option) -> tuple[float, float]:
        """Seconds of the node, and those after the last sample has arrived (at least).

        Training can take every micro-batch but the last before the last sample is there.
        """
        seconds = option.cost.seconds
        if node.role is not Role.TRAIN:
            return seconds, seconds / option.settings.chunks / max(1.0, node.steps)
        epochs = node.option("epochs")
        samples = self.graph.volume(node, node.inputs[0].source).samples
        micro_batch = option.settings.micro_batch or samples
        micro_batches = max(1, samples // (option.settings.parallel.dp * micro_batch))
        one = seconds / epochs
        return seconds, one / micro_batches + one * (epochs - 1)

    def _syncs(self, leaf: Leaf, leaves: list[Leaf]) -> float:
        trainers, total = self.graph.trainers(), 0.0
        node = self.graph.node(leaf.node)
        if node.role is Role.TRAIN:
            return 0.0
        for use in node.models:
            if use.model in trainers and use.port is not Port.FROZEN:
                source = next(x for x in leaves if x.node == trainers[use.model].name)
                delivery = self.graph.deliveries().get(use.delivered or ("", ""))
                every = delivery.option("every") if delivery else 1
                total += self.sync_seconds(use.model, source.devices, leaf.devices) / every
        return total


def _chains(graph: Graph) -> list[list[Node]]:
    chains: list[list[Node]] = []
    for model in graph.syncs():
        trainer = graph.trainers()[model]
        for node in graph.readers(model):
            if node.name != trainer.name:
                for path in nx.all_simple_paths(graph.flow, node.name, trainer.name):
                    chains.append([graph.node(name) for name in path])
    return chains
