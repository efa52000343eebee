"""Device types as publications spell them, and clusters of them."""

from __future__ import annotations

import re

from rlinf_graph.ir import hardware
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.hardware import Entry
from validation.rows import plain, spellings

CORES = 12
"""Of the host for each device; nothing here depends on them."""


MAKERS = {"nvidia", "amd", "instinct", "huawei", "dgx", "hgx", "tensor", "core", "gpu"}
"""Words before or in a device's name that say nothing of it."""

OTHER = {"pcie", "nvl"}
"""Words of cards that are not in the catalogue: they are slower than those that it has."""

NEAR = 0.1
"""Share by which the memory that a name says may differ from the catalogue's."""


def device_named(spelled: str) -> Entry | None:
    """The catalogue's device; None for one that it does not have."""
    known = hardware.find(spellings("devices").get(plain(spelled), spelled))
    return known or _like(spelled)


def _like(spelled: str) -> Entry | None:
    """The device whose name a longer one begins with: `H100-SXM5`, `NVIDIA A100 SXM4 40GB`.

    Of devices of one name it is the one with the memory that the text says.
    """
    words = re.findall(r"[a-z0-9]+", spelled.lower())
    text = "-".join(word for word in words if word not in MAKERS)
    if OTHER & set(words):
        return None
    size = re.search(r"(?:^|-)(\d+)g(?:i?b)?\b", text)
    found = [
        (length, entry) for entry in hardware.catalogue().values() if (length := _fit(entry, text))
    ]
    if size and found:
        gigabytes = float(size[1])
        found = [
            (length - off, entry)
            for length, entry in found
            if (off := abs(entry.device.memory / 1e9 / gigabytes - 1)) < NEAR
        ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _fit(entry: Entry, text: str) -> float:
    """Letters of a text that a device's names have in front; its family's alone count less."""
    names = [name.lower() for name in (entry.device.name, *entry.aliases)]
    family = names[0].partition("-")[0]
    lengths = [len(n) for n in names if re.match(rf"{re.escape(n)}(?!\d)", text)]
    if re.search(r"\d", family) and re.match(rf"{family}(?!\d)", text):
        lengths.append(len(family) - 0.5)
    return max(lengths, default=0.0)


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
