"""Which engine instance serves which node on which devices, and the versions of its weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph, ModelUse, Node
from rlinf_graph.ir.node_type import Port, Role
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.program import Program, WorkerGroup
from rlinf_graph.nodes.engine import Engine, engine_class

if TYPE_CHECKING:
    from torch import Tensor

Snapshot = list[tuple[str, "Tensor"]]


@dataclass(frozen=True)
class Instance:
    """Nodes on the same devices share an engine for the same model, port and purpose."""

    model: str
    port: Port
    trains: bool
    devices: tuple[int, ...]
    engine: str


class Engines:
    """All engine instances of a program in one process."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        program: Program,
        cluster: Cluster,
        seed: int,
        initial: Mapping[str, str],
    ) -> None:
        """Load every model where the plan wants it; `initial` names folders to start from."""
        self._initial = initial
        self._graph, self._plan, self._cluster, self._seed = graph, plan, cluster, seed
        self._engines: dict[Instance, Engine] = {}
        self._held: dict[Instance, int] = {}
        self._snapshots: dict[str, dict[int, Snapshot]] = defaultdict(dict[int, Snapshot])
        self._keep = 2 + max((sync.staleness for sync in plan.syncs.values()), default=0)
        for group in program.groups:
            for rank in range(group.ranks):
                for use in graph.node(group.name).models:
                    self._load(self._instance(group, rank, use))

    def of(self, group: WorkerGroup, rank: int) -> dict[str, Engine]:
        """Engines of a node's rank, by model parameter."""
        node = self._graph.node(group.name)
        return {u.param: self._engines[self._instance(group, rank, u)] for u in node.models}

    def versions(self, group: WorkerGroup, rank: int) -> dict[str, int]:
        """The version of the weights that each of those engines holds."""
        node = self._graph.node(group.name)
        return {u.param: self._held[self._instance(group, rank, u)] for u in node.models}

    def trainers(self, group: WorkerGroup) -> list[Engine]:
        """The engines of all ranks of a train node."""
        use = self._graph.node(group.name).models[0]
        return [self._engines[self._instance(group, r, use)] for r in range(group.ranks)]

    def publish(self, group: WorkerGroup, model: str, version: int) -> None:
        """Keep a copy of the trained weights for those who read this version."""
        kept = self._snapshots[model]
        engine = self.trainers(group)[0]
        kept[version] = [(name, value.detach().clone()) for name, value in engine.weights().items()]
        for old in [v for v in kept if v <= version - self._keep - self._every(model)]:
            del kept[old]

    def adopt(self, group: WorkerGroup, rank: int, model: str, version: int) -> None:
        """Give a reader this version of the weights, unless it holds it."""
        node = self._graph.node(group.name)
        for use in node.models:
            instance = self._instance(group, rank, use)
            snapshot = self._snapshots[model].get(version)
            if use.model == model and self._held[instance] != version and snapshot is not None:
                self._engines[instance].load_weights(snapshot)
                self._held[instance] = version

    def save(self, model: str, path: Path) -> None:
        """Write the trained weights of a model as a folder that transformers loads."""
        trained = next(i for i in self._engines if i.model == model and i.trains)
        self._engines[trained].save(path)

    def _every(self, model: str) -> int:
        sync = self._graph.syncs().get(model)
        return sync.option("every") if sync else 1

    def _instance(self, group: WorkerGroup, rank: int, use: ModelUse) -> Instance:
        node: Node = self._graph.node(group.name)
        trains = node.role is Role.TRAIN
        engine = self._plan.settings(node.name).engine
        return Instance(use.model, use.port, trains, group.devices_of(rank), engine)

    def _load(self, instance: Instance) -> None:
        if instance in self._engines:
            return
        model = self._graph.model(instance.model)
        if instance.model in self._initial:
            model = replace(model, path=self._initial[instance.model], weights="pretrained")
        kind = self._cluster.group_of(instance.devices[0]).device.kind
        self._engines[instance] = engine_class(instance.engine)(
            model,
            seed=self._seed,
            device=f"cuda:{instance.devices[0]}" if kind == "gpu" else "cpu",
            dtype=model.dtype,
            trainable=instance.trains,
        )
        self._held[instance] = 0
