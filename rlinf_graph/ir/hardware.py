"""The catalogue of devices in `hardware.toml`: names, aliases and default links."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from rlinf_graph.ir.cluster import DeviceType, Link

GIGA = 1e9
TERA = 1e12
MICRO = 1e-6
MACHINE = 8  # devices of a machine where the file says nothing, as DGX and HGX boards have


@dataclass(frozen=True)
class Entry:
    """A device with the links that its machines usually have.

    Attributes:
        device: its figures.
        aliases: other names of it.
        inside: between devices of a machine, and of `machines_inside` machines.
        between: between machines.
        machine: devices of a machine, as they are sold.
        machines_inside: machines whose devices reach one another over `inside`.
    """

    device: DeviceType
    aliases: tuple[str, ...]
    inside: Link
    between: Link
    machine: int
    machines_inside: int


@cache
def catalogue() -> dict[str, Entry]:
    """The devices by name, in the order of the file."""
    text = resources.files("rlinf_graph.ir").joinpath("hardware.toml").read_text("utf-8")
    return {name: _entry(name, fields) for name, fields in tomllib.loads(text).items()}


def find(name: str) -> Entry | None:
    """The device with this name or alias, in any case; None when there is none."""
    wanted = name.lower()
    for entry in catalogue().values():
        if wanted in (text.lower() for text in (entry.device.name, *entry.aliases)):
            return entry
    return None


def names() -> list[str]:
    """What `find` accepts, to be suggested."""
    return [text for e in catalogue().values() for text in (e.device.name, *e.aliases)]


def link(bandwidth_gb_s: float, latency_us: float) -> Link:
    """A link from the units of the files."""
    return Link(bandwidth_gb_s * GIGA, latency_us * MICRO)


def _entry(name: str, fields: dict[str, Any]) -> Entry:
    device = DeviceType(
        name=name,
        kind=fields["kind"],
        memory=fields["memory_gb"] * GIGA,
        memory_bandwidth=fields["memory_bandwidth_gb_s"] * GIGA,
        flops=tuple((dtype, figure * TERA) for dtype, figure in fields["flops"].items()),
        host_link=link(**fields["host_link"]),
        source=fields["source"],
        power=fields.get("power_w", 0.0),
    )
    inside, between = link(**fields["inside"]), link(**fields["between"])
    machine, machines = fields.get("machine", MACHINE), fields.get("machines_inside", 1)
    return Entry(device, tuple(fields["aliases"]), inside, between, machine, machines)
