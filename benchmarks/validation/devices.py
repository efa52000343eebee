"""Device types as publications spell them, and clusters of them."""

from __future__ import annotations

import re

from rlinf_graph.ir import hardware
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.hardware import Entry

FOUR = ("GB200", "GB300", "GH200")
"""Parts with four devices a machine; others have eight."""


def device_named(spelled: str) -> Entry | None:
    """The catalogue's device; None for one that it does not have."""
    text = re.sub(r"\(.*\)", "", spelled).strip()
    while text:
        if found := hardware.find(text):
            return found
        text = text.rpartition("-")[0]
    return None


def cluster_of(spelled: str, devices: int) -> Cluster:
    """Machines of a device type; the last one may be larger than it needs to be."""
    entry = device_named(spelled)
    if entry is None:
        raise KeyError(spelled)
    each = min(devices, 4 if spelled.upper().startswith(FOUR) else 8)
    group = NodeGroup(
        name=entry.device.name,
        device=entry.device,
        nodes=-(-devices // each),
        devices_per_node=each,
        cpus=12 * each,
        inside=entry.inside,
        between=entry.between,
    )
    return Cluster(f"{devices} {entry.device.name}", (group,))
