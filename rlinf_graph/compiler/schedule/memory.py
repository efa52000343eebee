"""What of a device's memory may be planned with, and what it means to have too little."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.ir.cluster import NodeGroup

RESERVED = 0.02
"""Part of a device's memory that nobody may plan with: fragmentation of the allocator.

An assumption. Context and communication buffers are a part of every node's own memory.
"""


@dataclass(frozen=True)
class Shortage:
    """The device that lacks most.

    Attributes:
        over: bytes missing.
        needed, available: bytes.
        device: its number.
        node: the node that needs most on it.
        others: bytes that other nodes keep on it meanwhile.
    """

    over: float
    needed: float
    available: float
    device: int
    node: str
    others: float


def usable(group: NodeGroup) -> float:
    """Bytes of each device of a node group that plans may count on."""
    return group.device.memory * (1 - RESERVED)
