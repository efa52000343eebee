"""Seconds of collective communication between the devices of a group.

Within a machine, an all-gather or reduce-scatter moves (n - 1)/n of the whole through every device
(Patarasuk and Yuan 2009), with the latency of a tree. Across machines it takes the faster of two
ways. A ring runs over as many network links as a machine has members, so that its speed is that of
the slower of one link inside and all between, but its latency grows with its members. In stages,
each device gathers from its peers in other machines, then from its own (Jia et al. 2018, section
3.2): the two do not overlap, but their latencies are those of trees.
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
    def machines(self) -> int:
        """Machines that the devices are on, each with `per_machine` of them."""
        return 1 if self.between is None else math.ceil(self.size / self.per_machine)

    @cached_property
    def latency(self) -> float:
        """Seconds of one small message to all, by trees inside machines and between them."""
        if self.between is None:
            return _tree(self.size) * self.inside.latency
        inside = _tree(self.per_machine) * self.inside.latency
        return inside + _tree(self.machines) * self.between.latency

    @cached_property
    def ring_latency(self) -> float:
        """Seconds of one small message around a ring."""
        if self.between is None:
            return self.latency
        inside = (self.size - self.machines) * self.inside.latency
        return inside + self.machines * self.between.latency

    @cached_property
    def staged(self) -> float:
        """Seconds for each byte that is gathered in stages, between machines and inside them."""
        if self.between is None:
            return (self.size - 1) / self.size / self.bandwidth
        inside = (self.per_machine - 1) / self.per_machine / self.inside.bandwidth
        between = (self.machines - 1) / self.machines / self.per_machine / self.between.bandwidth
        return (inside + between) / COLLECTIVE

    def all_gather(self, whole: Bytes) -> Bytes:
        """Seconds until every device has `whole` bytes, of which it had its share.

        A reduce-scatter takes the same.
        """
        staged = whole * self.staged + self.latency
        if self.between is None:
            return staged
        around = whole * ((self.size - 1) / self.size / self.bandwidth) + self.ring_latency
        if isinstance(staged, np.ndarray):
            return np.minimum(staged, around)
        return min(staged, around)

    def all_reduce(self, whole: Bytes) -> Bytes:
        """Seconds to add up `whole` bytes of every device."""
        return 2 * self.all_gather(whole)

    def broadcast(self, whole: float) -> float:
        """Seconds to send `whole` bytes of one device to all others, in a pipeline."""
        return whole / self.bandwidth + self.latency if self.size > 1 else 0.0

    def dispatch(self, tokens: float, visits: int) -> float:
        """Seconds to send `tokens` bytes of every device to the ranks of their experts, or back.

        A token that visits several experts is sent once to each machine and once to each device:
        of n ranks, k random visits reach n (1 - (1 - 1/n)^k).
        """
        reached = self.size * (1 - (1 - 1 / self.size) ** visits)
        inside = tokens * reached * (self.size - 1) / self.size
        seconds = inside / (COLLECTIVE * self.inside.bandwidth)
        if self.between is not None:
            machines = self.machines
            away = machines * (1 - (1 - 1 / machines) ** visits) * (machines - 1) / machines
            seconds += tokens * away / (COLLECTIVE * self.between.bandwidth)
        return seconds + self.latency

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


def _tree(size: int) -> int:
    """Steps of a tree over so many."""
    return math.ceil(math.log2(size))


def _slowest(links: Sequence[Link]) -> Link:
    return Link(min(link.bandwidth for link in links), max(link.latency for link in links))
