"""Device types as publications spell them, and clusters of them."""

from __future__ import annotations

from rlinf_graph.ir import hardware
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.hardware import Entry
from validation.rows import plain, spellings

CORES = 12
"""Of the host for each device; nothing here depends on them."""


def device_named(spelled: str) -> Entry | None:
    """The catalogue's device; None for one that it does not have."""
    return hardware.find(spellings("devices").get(plain(spelled), spelled))


def cluster_of(spelled: str, devices: int) -> Cluster:
    """Machines of a device type; the last one may be larger than it needs to be."""
    entry = device_named(spelled)
    if entry is None:
        raise KeyError(spelled)
    each = min(devices, entry.machine)
    group = NodeGroup(
        name=entry.device.name,
        device=entry.device,
        nodes=-(-devices // each),
        devices_per_node=each,
        cpus=CORES * each,
        inside=entry.inside,
        between=entry.between,
        machines_inside=entry.machines_inside,
    )
    return Cluster(f"{devices} {entry.device.name}", (group,))
