"""What the user has decided already: devices and tensor parallelism of nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rlinf_graph.compiler.check_plan import device_nodes
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors, suggest
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import parse_devices, show_devices


@dataclass(frozen=True)
class Pin:
    """A node's given devices (None: free) and tensor parallelism (None: free)."""

    devices: tuple[int, ...] | None = None
    tp: int | None = None

    def __str__(self) -> str:
        """As it is written: `0-7 tp 2`."""
        devices = None if self.devices is None else show_devices(self.devices)
        return " ".join(filter(None, (devices, f"tp {self.tp}" if self.tp else None)))


def read_pins(graph: Graph, cluster: Cluster, more: Mapping[str, str]) -> dict[str, Pin]:
    """Pins by node name, from the pipeline's declaration and from the command line.

    A pin reads `0-7`, `tp 2` or `0-7 tp 2`; a node is named in full, or by its first word where
    that is enough.

    Raises:
        CompileError: RG0402 for devices that do not exist, RG0407 for what cannot be read.
    """
    names = [node.name for node in device_nodes(graph)]
    pins: dict[str, Pin] = {}
    found: list[Diagnostic] = []
    for given, text in {**dict(graph.pins), **more}.items():
        matches = [n for n in names if n == given] or [n for n in names if n.split()[0] == given]
        if len(matches) != 1:
            which = f"matches {len(matches)} nodes" if matches else "is no device node"
            message = f"pin `{given}`: `{given}` {which} of `{graph.name}`"
            found.append(Diagnostic("RG0407", message, graph.span, help=(suggest(given, names),)))
            continue
        pin = _parse(text)
        if pin is None:
            message = f"pin `{given}`: cannot read `{text}`"
            help_text = ("write devices, tensor parallelism or both: 0-7 tp 2",)
            found.append(Diagnostic("RG0407", message, graph.span, help=help_text))
            continue
        pins[matches[0]] = pin
        found += _missing(graph, cluster, matches[0], pin)
    raise_errors(found)
    return pins


def _parse(text: str) -> Pin | None:
    match = re.fullmatch(r"\s*([\d,\-\s]*?)\s*(?:tp\s*([1-9]\d*))?\s*", text)
    if match is None or not any(match.groups()):
        return None
    try:
        devices = parse_devices(match[1]) if match[1] else None
    except ValueError:
        return None
    if devices is not None and len(set(devices)) < max(1, len(devices)):
        return None
    return Pin(devices, int(match[2]) if match[2] else None)


def _missing(graph: Graph, cluster: Cluster, name: str, pin: Pin) -> list[Diagnostic]:
    if pin.devices is None or max(pin.devices) < cluster.size:
        return []
    there = show_devices(range(cluster.size))
    return [
        Diagnostic(
            "RG0402",
            f"`{name}` is pinned to devices {show_devices(pin.devices)}, "
            f"{cluster.name} has {cluster.size} ({there})",
            graph.node(name).span,
            label=f"pinned to {show_devices(pin.devices)}",
            notes=(f"{cluster.name}: {cluster.summary()}",),
            help=(
                f'pins={{"{name}": "{there}"}}',
                f"or a cluster of at least {max(pin.devices) + 1} devices",
            ),
        )
    ]
