"""Which engine instance serves which node on which devices, and the versions of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING

from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph, ModelDef, ModelUse
from rlinf_graph.ir.node_type import Port, Role
from rlinf_graph.ir.plan import NodePlan, Plan
from rlinf_graph.ir.program import Await, WorkerGroup
from rlinf_graph.nodes.engine import Engine
from rlinf_graph.nodes.registry import capabilities_of, engine_class

if TYPE_CHECKING:
    from torch import Tensor

Snapshot = Iterable[tuple[str, "Tensor"]]
"""Weights, to be iterated over as often as they are needed."""


@dataclass(frozen=True)
class Instance:
    """Nodes on the same devices share an engine for the same model, port and purpose.

    `world` are the devices of all replicas, where those are joined.
    """

    model: str
    port: Port
    served: str
    trains: bool
    devices: tuple[int, ...]
    engine: str
    world: tuple[int, ...] = ()

    @staticmethod
    def of(graph: Graph, plan: Plan, group: WorkerGroup, rank: int, use: ModelUse) -> Instance:
        """The engine of a rank of a node for one of its models."""
        engine = plan.settings(group.name).engine
        return Instance(
            model=use.model,
            port=use.port,
            served=use.served,
            trains=graph.node(group.name).role is Role.TRAIN,
            devices=group.devices_of(rank),
            engine=engine,
            world=group.devices if capabilities_of(engine).joined else (),
        )


def definition_of(graph: Graph, model: str, initial: Mapping[str, str]) -> ModelDef:
    """A model with the folder that its first weights are to come from."""
    declared = graph.model(model)
    if model not in initial:
        return declared
    return replace(declared, path=initial[model], weights="pretrained")


@dataclass(frozen=True)
class Kept:
    """Which versions of the weights readers may still ask for.

    Attributes:
        lag: iterations by which the slowest reader may lag behind the trainer.
        every: of the deliveries of each model; others read its trained port in any iteration.
    """

    lag: int
    every: Mapping[str, frozenset[int]]

    @staticmethod
    def of(graph: Graph, plan: Plan) -> Kept:
        """For the deliveries of a plan."""
        every = {model: {1} for model in graph.trainers()}
        for (model, _served), sync in graph.deliveries().items():
            every[model].add(sync.option("every"))
        lag = 2 + max((sync.staleness for sync in plan.syncs.values()), default=0)
        return Kept(lag, {model: frozenset(found) for model, found in every.items()})

    def past(self, model: str, versions: Iterable[int], newest: int) -> list[int]:
        """Those of the versions that nobody asks for any more once the newest is there."""
        return [
            version
            for version in versions
            if not any(
                version % every == 0 and version > newest - self.lag - every
                for every in self.every[model]
            )
        ]


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
        hosted: Mapping[Instance, Engine] | None = None,
    ) -> None:
        """Load the models of the ranks in `places`; `initial` names folders to start from.

        Those in `hosted` are loaded already, in processes of their own.
        """
        self._graph, self._plan, self._cluster, self._seed = graph, plan, cluster, seed
        self._initial = initial
        self._hosted = hosted or {}
        self._engines: dict[Instance, Engine] = {}
        self._held: dict[Instance, int] = {}
        self._averages: dict[Instance, dict[str, Tensor]] = {}
        self._adopting = Lock()
        self._instances: dict[tuple[str, int], dict[str, Instance]] = {}
        self._of: dict[tuple[str, int], dict[str, Engine]] = {}
        for group, rank in places:
            for use in graph.node(group.name).models:
                self._load(self._instance(group, rank, use))

    def of(self, group: WorkerGroup, rank: int) -> dict[str, Engine]:
        """Engines of a node's rank, by model parameter."""
        key = (group.name, rank)
        if key not in self._of:
            found = self._instances_of(group, rank).items()
            self._of[key] = {param: self._engines[instance] for param, instance in found}
        return self._of[key]

    def versions(self, group: WorkerGroup, rank: int) -> dict[str, int]:
        """The version of the weights that each of those engines holds."""
        return {p: self._held[i] for p, i in self._instances_of(group, rank).items()}

    def trainer(self, group: WorkerGroup, rank: int) -> Engine:
        """The engine of a rank of a train node."""
        return next(iter(self.of(group, rank).values()))

    def settings(self, group: WorkerGroup) -> NodePlan:
        """The plan's settings of a node."""
        return self._plan.settings(group.name)

    def hosted(self, group: WorkerGroup) -> bool:
        """Whether the engines of a node are in processes of their own."""
        uses = self._graph.node(group.name).models
        return any(self._instance(group, 0, use) in self._hosted for use in uses)

    def joined(self, group: WorkerGroup) -> bool:
        """Whether the engines of a train node sum gradients and weights themselves."""
        return capabilities_of(self.settings(group).engine).joined

    def due(
        self, group: WorkerGroup, rank: int, awaited: Await, iteration: int, first: int = 0
    ) -> list[int]:
        """The versions that a reader has yet to take over, in order.

        One that averages takes every delivered version. One that may take newer ones while it
        generates takes none where it has; others on its engine take the version that is due back.
        `first` is what it was loaded with.
        """
        version = max(first, awaited.version(iteration))
        held = [self._held[instance] for instance in self._readers(group, rank, awaited)]
        newer = awaited.interrupt and all(each > version for each in held)
        if newer or all(each == version for each in held) or max(held) <= first == version:
            return []
        if not awaited.decay:
            return [version]
        last = max(first, min(held)) // awaited.every
        return list(range((last + 1) * awaited.every, version + 1, awaited.every))

    def adopt(
        self, group: WorkerGroup, rank: int, awaited: Await, version: int, weights: Snapshot
    ) -> None:
        """Give a reader this version of the weights, or let it take its part of them.

        Readers that share an engine may come with the same version at the same time; an average
        takes it once.
        """
        with self._adopting:
            for instance in self._readers(group, rank, awaited):
                if awaited.decay and version <= self._held[instance]:
                    continue
                averages = self._averaged(instance, awaited.decay, weights)
                self._engines[instance].update_weights(averages, version)
                self._held[instance] = version

    def _averaged(self, instance: Instance, decay: float, new: Snapshot) -> Snapshot:
        """`decay own + (1 - decay) new` of each weight; what is no real number is taken over.

        The averages are kept on the CPU, in float32 or wider: in bfloat16, whose neighbours differ
        by 0.4 to 0.8 %, steps of `1 - decay` of a difference would be rounded away.
        """
        if not decay:
            return new
        import torch

        def widened(value: Tensor) -> Tensor:
            kept = torch.promote_types(value.dtype, torch.float32)
            return value.detach().to("cpu", kept if value.is_floating_point() else value.dtype)

        if instance not in self._averages:
            own = self._engines[instance].shards()
            self._averages[instance] = {s.name: widened(s.values).clone() for s in own}
        averages, names = self._averages[instance], list[str]()
        for name, value in new:
            names.append(name)
            if value.is_floating_point():
                averages[name].mul_(decay).add_(widened(value), alpha=1 - decay)
            else:
                averages[name] = widened(value)
        return [(name, averages[name]) for name in names]

    def takers(self, group: WorkerGroup, awaited: Await) -> list[str]:
        """The parameters of a node whose engines take over what it awaits."""
        return [
            use.param
            for use in self._graph.node(group.name).models
            if use.model == awaited.model
            and use.served == awaited.served
            and use.port is not Port.FROZEN
        ]

    def _readers(self, group: WorkerGroup, rank: int, awaited: Await) -> list[Instance]:
        """The engines of a rank that take over what it awaits."""
        instances = self._instances_of(group, rank)
        return [instances[param] for param in self.takers(group, awaited)]

    def _instances_of(self, group: WorkerGroup, rank: int) -> dict[str, Instance]:
        """Of a node's rank, by model parameter."""
        key = (group.name, rank)
        if key not in self._instances:
            uses = self._graph.node(group.name).models
            self._instances[key] = {u.param: self._instance(group, rank, u) for u in uses}
        return self._instances[key]

    def _instance(self, group: WorkerGroup, rank: int, use: ModelUse) -> Instance:
        return Instance.of(self._graph, self._plan, group, rank, use)

    def _load(self, instance: Instance) -> None:
        if instance in self._engines:
            return
        self._held[instance] = 0
        if instance in self._hosted:
            self._engines[instance] = self._hosted[instance]
            return
        model = definition_of(self._graph, instance.model, self._initial)
        kind = self._cluster.group_of(instance.devices[0]).device.kind
        self._engines[instance] = engine_class(instance.engine)(
            model,
            seed=self._seed,
            device=self._device(instance.devices[0]) if kind == "gpu" else "cpu",
            dtype=model.dtype,
            trainable=instance.trains,
        )

    def _device(self, number: int) -> str:
        """The name of a GPU: by its place in its machine, or the only one that is visible."""
        import torch

        if torch.cuda.device_count() == 1:
            return "cuda:0"
        return f"cuda:{number % self._cluster.group_of(number).devices_per_node}"
