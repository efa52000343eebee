"""Seconds of collective communication between the devices of a group.

Ring formulas (Patarasuk and Yuan 2009): an all-gather or reduce-scatter moves (n - 1)/n of the
whole through every device. A ring that crosses machines runs over as many network links as a
machine has members, so that its speed is that of the slower of one link inside and all between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rlinf_graph.compiler.cost.constants import COLLECTIVE
from rlinf_graph.ir.cluster import Cluster, Link

Bytes = TypeVar("Bytes", float, npt.NDArray[np.float64])


@dataclass(frozen=True)
class Ring:
    """Devices that communicate with one another.

    Attributes:
        size: devices.
        per_machine: the fewest of them on one machine.
        inside: the slowest link inside a machine.
        between: the slowest between machines; None when they share one.
    """

    size: int
    per_machine: int
    inside: Link
    between: Link | None

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second through each device, reached."""
        if self.between is None:
            return COLLECTIVE * self.inside.bandwidth
        return COLLECTIVE * min(self.inside.bandwidth, self.per_machine * self.between.bandwidth)

    @cached_property
    def latency(self) -> float:
        """Seconds of one small message to all, by a tree."""
        slowest = self.inside.latency if self.between is None else self.between.latency
        return math.ceil(math.log2(self.size)) * slowest if self.size > 1 else 0.0

    def all_gather(self, whole: Bytes) -> Bytes:
        """Seconds until every device has `whole` bytes, of which it had its share.

        A reduce-scatter takes the same.
        """
        return whole * ((self.size - 1) / self.size / self.bandwidth) + self.latency

    def all_reduce(self, whole: Bytes) -> Bytes:
        """Seconds to add up `whole` bytes of every device."""
        return 2 * self.all_gather(whole)

    def broadcast(self, whole: float) -> float:
        """Seconds to send `whole` bytes of one device to all others, in a pipeline."""
        return whole / self.bandwidth + self.latency if self.size > 1 else 0.0

    def all_to_all(self, held: Bytes) -> Bytes:
        """Seconds to exchange `held` bytes of each device evenly among all."""
        seconds = held * ((self.size - 1) / self.size / (COLLECTIVE * self.inside.bandwidth))
        if self.between is not None:
            away = (self.size - self.per_machine) / self.size
            seconds = seconds + held * (away / (COLLECTIVE * self.between.bandwidth))
        return seconds + self.latency


def ring(cluster: Cluster, devices: Sequence[int]) -> Ring:
    """The ring over some devices of a cluster."""
    groups = cluster.groups_of(devices)
    machines = np.bincount(cluster.domains_of(devices))
    machines = machines[machines > 0]
    inside = _slowest([group.inside for group in groups])
    between = _slowest([group.between for group in groups]) if len(machines) > 1 else None
    return Ring(len(devices), int(machines.min()), inside, between)


def _slowest(links: Sequence[Link]) -> Link:
    return Link(min(link.bandwidth for link in links), max(link.latency for link in links))
