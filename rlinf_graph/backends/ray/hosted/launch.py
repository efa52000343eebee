"""Which engines need processes of their own, and a worker group for each model that they hold."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import rlinf_graph
from rlinf_graph.backends.engines import Instance, definition_of
from rlinf_graph.backends.ray.hosted.host import HostedEngine, Making
from rlinf_graph.backends.ray.hosted.proxy import Proxy
from rlinf_graph.backends.ray.placement import Placement
from rlinf_graph.backends.ray.workers.errors import WorkerError
from rlinf_graph.backends.ray.workers.group import WorkerGroup as Processes
from rlinf_graph.backends.ray.workers.handle import Handle
from rlinf_graph.backends.ray.workers.reservation import NodeSettings, Reservation, Seats
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import NodePlan, Plan, show_devices
from rlinf_graph.ir.program import WorkerGroup
from rlinf_graph.nodes.engine import Engine
from rlinf_graph.nodes.registry import capabilities_of

Pythons = Mapping[str, str]
"""Engine → the interpreter that its processes run in, of another environment."""

START_S = 300.0
"""For the processes of an engine to be there, with Python and torch imported."""
SILENCE_S = 120.0
"""Without any answer, for a process of an engine to be taken for stuck; `WorkerGroup.launch`."""


@dataclass(frozen=True)
class World:
    """Processes that hold a model, a device each.

    Attributes:
        instances: the replicas, each with the ranks of its processes.
        devices: in the order of ranks.
        settings: of the node; dp is 1 where replicas are not joined.
    """

    instances: tuple[tuple[Instance, range], ...]
    devices: tuple[int, ...]
    settings: NodePlan


class HostedEngines:
    """The worker groups of a run's hosted engines; `close` ends them.

    Attributes:
        proxies: the engines, by instance.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        cluster: Cluster,
        groups: Iterable[WorkerGroup],
        placement: Placement,
        *,
        seed: int,
        initial: Mapping[str, str],
        pythons: Pythons | None = None,
    ) -> None:
        """Start all processes; they load their engines from now on.

        Args:
            graph: of the plan.
            plan: names the engines.
            cluster: what it was made for.
            groups: of the program.
            placement: holds the cluster's devices; none of them is taken yet.
            seed: of the run.
            initial: folders to load first weights from, by model.
            pythons: interpreters, by engine; such an engine is hosted whatever it is.

        Raises:
            WorkerError, TimeoutError: where the processes do not start.
        """
        self.proxies: dict[Instance, Engine] = {}
        self._processes: list[Processes] = []
        self._opening: list[tuple[World, Handle]] = []
        self._pythons = pythons or {}

        def start(number: int, world: World) -> Processes:
            instance = world.instances[0][0]
            model = definition_of(graph, instance.model, initial)
            made = Making(instance.engine, model, seed, instance.trains, world.settings)
            name = f"{instance.engine} {instance.model} {number} on {show_devices(world.devices)}"
            seats = self._seats(world, instance.engine, cluster, placement)
            return Processes.launch(
                HostedEngine, (made,), seats, name=name, concurrency=2, timeout=START_S,
                silence=SILENCE_S,
            )  # fmt: skip

        worlds = worlds_of(graph, plan, groups, self._pythons)
        with ThreadPoolExecutor(max(1, len(worlds))) as pool:
            starting = [pool.submit(start, number, world) for number, world in enumerate(worlds)]
        try:
            self._processes = [each.result() for each in starting if each.exception() is None]
            for each in starting:
                each.result()
        except BaseException:
            self.close()
            raise
        for world, processes in zip(worlds, self._processes, strict=True):
            self._opening.append((world, processes.open()))
            for instance, ranks in world.instances:
                self.proxies[instance] = cast("Engine", Proxy(processes, ranks, instance.model))

    def wait(self) -> None:
        """Return when all engines are loaded.

        Raises:
            CompileError: the cause, where one cannot be.
            WorkerError: likewise, of another kind.
        """
        for _world, handle in self._opening:
            try:
                handle.wait()
            except WorkerError as error:
                if isinstance(error.__cause__, CompileError):
                    raise error.__cause__ from None
                raise

    def memory(self) -> dict[int, float]:
        """Most bytes that the engines' processes needed, by device; for those that know."""
        found: dict[int, float] = {}
        for (world, _handle), processes in zip(self._opening, self._processes, strict=True):
            for device, peak in zip(world.devices, processes.memory().wait(), strict=True):
                if peak is not None:
                    found[device] = found.get(device, 0.0) + peak
        return found

    def close(self) -> None:
        """End all processes."""
        for processes in self._processes:
            processes.close()
        self._processes = []

    def _seats(self, world: World, engine: str, cluster: Cluster, placement: Placement) -> Seats:
        python = self._pythons.get(engine)
        settings = NodeSettings(_environment() if python else {}, python)
        places = {group.name: settings for group in cluster.groups}
        tp = world.settings.parallel.tp
        return Reservation(cluster, places, placement).on(world.devices, tensor_parallel=tp)


def worlds_of(
    graph: Graph, plan: Plan, groups: Iterable[WorkerGroup], pythons: Pythons
) -> list[World]:
    """The worlds of a plan's hosted engines, in the order of the program."""
    made: dict[Instance, World] = {}
    for group in groups:
        settings = plan.settings(group.name)
        if not graph.node(group.name).models or not is_hosted(settings.engine, pythons):
            continue
        for use in graph.node(group.name).models:
            ranks = range(group.ranks)
            replicas = [Instance.of(graph, plan, group, rank, use) for rank in ranks]
            together = [replicas] if replicas[0].world else [[replica] for replica in replicas]
            for instances in together:
                if instances[0] not in made:
                    world = _world(instances, settings)
                    made |= dict.fromkeys(instances, world)
    return list({id(world): world for world in made.values()}.values())


def is_hosted(engine: str, pythons: Pythons) -> bool:
    """Whether an engine lives in processes of its own."""
    return engine in pythons or capabilities_of(engine).hosted


def _world(instances: list[Instance], settings: NodePlan) -> World:
    width = len(instances[0].devices)
    ranks = [range(at * width, (at + 1) * width) for at in range(len(instances))]
    alone = settings.parallel.model_copy(update={"dp": 1, "ep": 1, "shard": "none"})
    if not instances[0].world:
        settings = settings.model_copy(update={"parallel": alone})
    return World(
        instances=tuple(zip(instances, ranks, strict=True)),
        devices=tuple(device for instance in instances for device in instance.devices),
        settings=settings,
    )


def _environment() -> dict[str, str]:
    """Variables by which another interpreter finds this package, where it is not installed."""
    root = Path(rlinf_graph.__file__).parents[1]
    installed = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return {} if str(root) in installed else {"PYTHONPATH": str(root)}
