"""Which engine instance serves which node on which devices, and the versions of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph, ModelUse, Node
from rlinf_graph.ir.node_type import Port, Role
from rlinf_graph.ir.plan import NodePlan, Plan
from rlinf_graph.ir.program import WorkerGroup
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
    """The engine instances of one process."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        cluster: Cluster,
        places: Iterable[tuple[WorkerGroup, int]],
        *,
        seed: int,
        initial: Mapping[str, str],
    ) -> None:
        """Load the models of the ranks in `places`; `initial` names folders to start from."""
        self._graph, self._plan, self._cluster, self._seed = graph, plan, cluster, seed
        self._initial = initial
        self._engines: dict[Instance, Engine] = {}
        self._held: dict[Instance, int] = {}
        self._instances: dict[tuple[str, int], dict[str, Instance]] = {}
        for group, rank in places:
            for use in graph.node(group.name).models:
                self._load(self._instance(group, rank, use))

    def of(self, group: WorkerGroup, rank: int) -> dict[str, Engine]:
        """Engines of a node's rank, by model parameter."""
        return {p: self._engines[i] for p, i in self._instances_of(group, rank).items()}

    def versions(self, group: WorkerGroup, rank: int) -> dict[str, int]:
        """The version of the weights that each of those engines holds."""
        return {p: self._held[i] for p, i in self._instances_of(group, rank).items()}

    def trainer(self, group: WorkerGroup, rank: int) -> Engine:
        """The engine of a rank of a train node."""
        return self._engines[next(iter(self._instances_of(group, rank).values()))]

    def settings(self, group: WorkerGroup) -> NodePlan:
        """The plan's settings of a node."""
        return self._plan.settings(group.name)

    def lacks(self, group: WorkerGroup, rank: int, model: str, version: int) -> bool:
        """Whether a reader holds another version of the model's weights."""
        return any(
            use.model == model and self._held[self._instance(group, rank, use)] != version
            for use in self._graph.node(group.name).models
        )

    def adopt(
        self, group: WorkerGroup, rank: int, model: str, version: int, weights: Snapshot
    ) -> None:
        """Give a reader this version of the weights."""
        for use in self._graph.node(group.name).models:
            if use.model == model:
                instance = self._instance(group, rank, use)
                self._engines[instance].load_weights(weights)
                self._held[instance] = version

    def _instances_of(self, group: WorkerGroup, rank: int) -> dict[str, Instance]:
        """Of a node's rank, by model parameter."""
        key = (group.name, rank)
        if key not in self._instances:
            uses = self._graph.node(group.name).models
            self._instances[key] = {u.param: self._instance(group, rank, u) for u in uses}
        return self._instances[key]

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
            device=self._device(instance.devices[0]) if kind == "gpu" else "cpu",
            dtype=model.dtype,
            trainable=instance.trains,
        )
        self._held[instance] = 0

    def _device(self, number: int) -> str:
        """The name of a GPU: by its place in its machine, or the only one that is visible."""
        import torch

        if torch.cuda.device_count() == 1:
            return "cuda:0"
        return f"cuda:{number % self._cluster.group_of(number).devices_per_node}"
