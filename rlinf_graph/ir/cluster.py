"""The machines: node groups of equal devices, numbered through from 0 in the order of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Link:
    """A connection: `seconds = latency + bytes / bandwidth`, for one device and direction."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class DeviceType:
    """An accelerator or a processor core, from the catalogue or the cluster file.

    Attributes:
        name: as in the catalogue.
        kind: `gpu` or `cpu`.
        memory: bytes.
        memory_bandwidth: bytes a second.
        flops: dense peak operations a second by number format (`bfloat16`, `float32`, ...).
        host_link: to the memory of its machine, for offloading.
        source: where the figures come from.
        power: watts that it may draw; 0 where they are not published.
    """

    name: str
    kind: str
    memory: float
    memory_bandwidth: float
    flops: tuple[tuple[str, float], ...]
    host_link: Link
    source: str
    power: float = 0.0

    def peak(self, dtype: str) -> float:
        """Operations a second in a number format; that of float32 where none is published."""
        figures = dict(self.flops)
        return figures.get(dtype, figures["float32"])


@dataclass(frozen=True)
class NodeGroup:
    """Equal machines with equal devices.

    Attributes:
        name: unique in the cluster.
        device: what each device is.
        nodes: machines.
        devices_per_node: devices of each machine.
        cpus: processor cores of each machine, for host nodes.
        inside: between devices of one machine, and of `machines_inside` machines.
        between: between machines, for each device.
        price_per_hour: of each device, in any currency; None where it is not known.
        machines_inside: machines that are one domain, counted from the first: their devices
            reach one another over `inside`, as the 18 machines of an NVL72 rack do.
    """

    name: str
    device: DeviceType
    nodes: int
    devices_per_node: int
    cpus: int
    inside: Link
    between: Link
    price_per_hour: float | None = None
    machines_inside: int = 1

    @property
    def size(self) -> int:
        """Devices of all machines of the group."""
        return self.nodes * self.devices_per_node

    @property
    def domain(self) -> int:
        """Devices that reach one another over `inside`."""
        return min(self.nodes, self.machines_inside) * self.devices_per_node


@dataclass(frozen=True)
class Cluster:
    """What a plan is made for."""

    name: str
    groups: tuple[NodeGroup, ...]
    file: str = field(default="", compare=False)

    @property
    def size(self) -> int:
        """Devices of all node groups."""
        return sum(group.size for group in self.groups)

    @property
    def cpus(self) -> int:
        """Processor cores of all machines."""
        return sum(group.cpus * group.nodes for group in self.groups)

    def group_of(self, device: int) -> NodeGroup:
        """The node group that holds device number `device`; IndexError when none does."""
        first = 0
        for group in self.groups:
            if device < first + group.size:
                return group
            first += group.size
        raise IndexError(f"device {device} of a cluster with {self.size}")

    def first_of(self, group: NodeGroup) -> int:
        """The number of a node group's first device."""
        return sum(g.size for g in self.groups[: self.groups.index(group)])

    def groups_of(self, devices: Sequence[int]) -> tuple[NodeGroup, ...]:
        """The node groups of some devices, each once, in the order of the cluster."""
        found, first = list[NodeGroup](), 0
        numbers = np.asarray(devices, dtype=np.int64)
        for group in self.groups:
            inside = (numbers >= first) & (numbers < first + group.size)
            found += [group] if inside.any() else []
            first += group.size
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= first):
            raise IndexError(f"device {int(numbers.max())} of a cluster with {first}")
        return tuple(found)

    def machines_of(self, devices: Sequence[int]) -> NDArray[np.int64]:
        """The number of the machine of each device, counted through all groups."""
        numbers = np.asarray(devices, dtype=np.int64)
        found = np.zeros_like(numbers)
        machine = first = 0
        for group in self.groups:
            inside = (numbers >= first) & (numbers < first + group.size)
            found[inside] = machine + (numbers[inside] - first) // group.devices_per_node
            first += group.size
            machine += group.nodes
        return found

    def domains_of(self, devices: Sequence[int]) -> NDArray[np.int64]:
        """The same of domains: machines, but for groups where several are one."""
        numbers = np.asarray(devices, dtype=np.int64)
        found = np.zeros_like(numbers)
        domain = first = 0
        for group in self.groups:
            inside = (numbers >= first) & (numbers < first + group.size)
            found[inside] = domain + (numbers[inside] - first) // group.domain
            first += group.size
            domain += -(-group.size // group.domain)
        return found

    def summary(self) -> str:
        """One line, such as `16 × H100-SXM-80GB`."""
        return " + ".join(f"{group.size} × {group.device.name}" for group in self.groups)
