"""The devices of a cluster, reserved once, and the processes that worker groups put on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlinf_graph.backends.ray.placement import Placement
from rlinf_graph.ir.cluster import Cluster


@dataclass(frozen=True)
class NodeSettings:
    """How processes start on the machines of a node group.

    Attributes:
        env: environment variables, there before the interpreter starts.
        python: the command that starts the interpreter; by default the driver's.
    """

    env: Mapping[str, str] = field(default_factory=dict[str, str])
    python: str | None = None


@dataclass(frozen=True)
class Seat:
    """Where one process of a worker group goes.

    Attributes:
        devices: their numbers in the cluster; none for a process of the processor only.
        machine: its number in the cluster.
        local_rank: among the group's processes on the machine.
        local_size: how many those are.
        visible: indices of the devices on their machine, as CUDA_VISIBLE_DEVICES has them.
        share: how many of the group's processes share each device.
    """

    devices: tuple[int, ...]
    machine: int
    local_rank: int = 0
    local_size: int = 1
    visible: tuple[str, ...] = ()
    share: int = 1


@dataclass(frozen=True)
class Seats:
    """Processes in the order of their ranks, on a reservation."""

    reservation: Reservation
    seats: tuple[Seat, ...]


class Reservation:
    """Holds every device of a cluster until it is closed; a context manager.

    Several worker groups may use the same devices: Ray keeps other programs away from them, and
    what the groups do there is between themselves.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: Mapping[str, NodeSettings] | None = None,
        placement: Placement | None = None,
    ) -> None:
        """Reserve a Ray node for each machine, and a bundle for each device.

        Args:
            cluster: as `load_cluster` reads it.
            settings: by the name of a node group; those without have the defaults.
            placement: that holds the cluster's devices already; whoever made it removes it.

        Raises:
            CompileError: RG0608, when Ray has too few nodes that fit.
            ValueError: for settings of a node group that the cluster does not have.
        """
        self.cluster, self._settings = cluster, dict(settings or {})
        unknown = self._settings.keys() - {group.name for group in cluster.groups}
        if unknown:
            raise ValueError(f"the cluster has no node group {', '.join(sorted(unknown))}")
        self._owner = placement is None
        self._placement = placement or Placement(cluster)
        self._visible: dict[int, str] = {}

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the devices back. Ray ends whatever still runs on them."""
        if self._owner:
            self._placement.remove()

    def on(
        self,
        devices: Sequence[int],
        *,
        devices_per_process: int = 1,
        processes_per_device: int = 1,
        tensor_parallel: int = 1,
    ) -> Seats:
        """Processes on some devices; ranks follow the order in which the devices are given.

        Args:
            devices: their numbers in the cluster, each once.
            devices_per_process: neighbours in `devices`, on one machine.
            processes_per_device: how many share each device; ranks of one device are neighbours.
            tensor_parallel: so many neighbouring ranks have to be on one machine.

        Raises:
            ValueError: when the counts do not go into one another, or a process or its
                tensor-parallel ranks would lie on two machines.
            IndexError: for a device that the cluster does not have.
        """
        self._check(devices, devices_per_process, processes_per_device, tensor_parallel)
        machines = [int(machine) for machine in self.cluster.machines_of(devices)]
        self.cluster.groups_of(devices)
        made: list[Seat] = []
        for at in range(0, len(devices), devices_per_process):
            own = tuple(devices[at : at + devices_per_process])
            one = _one_machine(machines[at : at + devices_per_process], f"devices {own}")
            visible = tuple(self._index(device) for device in own)
            seat = Seat(own, one, visible=visible, share=processes_per_device)
            made += [seat] * processes_per_device
        for at in range(0, len(made), tensor_parallel):
            ranks = made[at : at + tensor_parallel]
            what = f"tensor-parallel ranks {at} to {at + len(ranks) - 1}"
            _one_machine([seat.machine for seat in ranks], what)
        return Seats(self, _numbered(made))

    def without_devices(self, processes: int = 1, machine: int = 0) -> Seats:
        """Processes that see no device, on one machine; Ray counts no processor for them."""
        if not 0 <= machine < sum(group.nodes for group in self.cluster.groups):
            raise IndexError(f"machine {machine} of a cluster without it")
        if processes < 1:
            raise ValueError("a worker group has at least one process")
        return Seats(self, _numbered([Seat((), machine)] * processes))

    def options(self, seat: Seat) -> dict[str, Any]:
        """What Ray needs to know of the actor on a seat."""
        device = seat.devices[0] if seat.devices else self._first_of(seat.machine)
        settings = self._settings.get(self.cluster.group_of(device).name, NodeSettings())
        environment: dict[str, Any] = {"env_vars": dict(settings.env)} if settings.env else {}
        if settings.python:
            environment["py_executable"] = settings.python
        strategy = self._placement.options(device)["scheduling_strategy"]
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": strategy}
        return options | ({"runtime_env": environment} if environment else {})

    def is_gpu(self, device: int) -> bool:
        """Whether a device is a GPU rather than a processor core."""
        return self.cluster.group_of(device).device.kind == "gpu"

    def _check(self, devices: Sequence[int], several: int, shared: int, parallel: int) -> None:
        if not devices or len(set(devices)) < len(devices):
            raise ValueError(f"devices {tuple(devices)}: at least one, and each of them once")
        if min(several, shared, parallel) < 1 or (several > 1 and shared > 1):
            raise ValueError("several devices for a process, or several processes on a device")
        if len(devices) % several:
            raise ValueError(f"{len(devices)} devices do not make processes of {several}")
        ranks = len(devices) // several * shared
        if ranks % parallel:
            raise ValueError(f"{ranks} ranks do not make tensor-parallel groups of {parallel}")

    def _first_of(self, machine: int) -> int:
        """The first device of a machine."""
        first = 0
        for group in self.cluster.groups:
            if machine < group.nodes:
                return first + machine * group.devices_per_node
            machine, first = machine - group.nodes, first + group.size
        raise IndexError("no such machine")

    def _index(self, device: int) -> str:
        """The index of a device on its machine: for a GPU, that of the one Ray has reserved."""
        if not self.is_gpu(device):
            group = self.cluster.group_of(device)
            return str((device - self.cluster.first_of(group)) % group.devices_per_node)
        if device not in self._visible:
            strategy: PlacementGroupSchedulingStrategy
            strategy = self._placement.options(device)["scheduling_strategy"]
            ask = ray.remote(_gpu).options(num_cpus=0, num_gpus=1, scheduling_strategy=strategy)
            self._visible[device] = ray.get(ask.remote())
        return self._visible[device]


def _gpu() -> str:
    """The GPU of the bundle in which this runs."""
    return str(ray.get_runtime_context().get_accelerator_ids()["GPU"][0])


def _one_machine(machines: Sequence[int], what: str) -> int:
    if len(set(machines)) > 1:
        told = ", ".join(str(machine) for machine in dict.fromkeys(machines))
        raise ValueError(f"{what} would lie on machines {told}; they have to share one")
    return machines[0]


def _numbered(seats: Sequence[Seat]) -> tuple[Seat, ...]:
    """With local ranks, in the order of the seats."""
    sizes, seen, made = Counter(seat.machine for seat in seats), Counter[int](), list[Seat]()
    for seat in seats:
        at = seen[seat.machine]
        made.append(
            Seat(seat.devices, seat.machine, at, sizes[seat.machine], seat.visible, seat.share)
        )
        seen[seat.machine] += 1
    return tuple(made)
