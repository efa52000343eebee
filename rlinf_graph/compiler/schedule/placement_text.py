"""Devices as RLinf's `component_placement` writes them: `all`, `0-3,6`, `0-7:0-3`."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.ir.plan import parse_devices


class NoPlacement(Exception):
    """Text that cannot be read, with the reason."""


@dataclass(frozen=True)
class PlacementText:
    """Devices, and over how many processes they are spread where that is said."""

    devices: tuple[int, ...]
    processes: int | None = None


def placement_of(text: str, size: int) -> PlacementText:
    """Read segments `resource_ranks[:process_ranks]` with commas between them.

    A segment without process ranks has one process for each device; its ranks follow those before.

    Args:
        text: such as `0-1:0-3,3-5`.
        size: devices of the cluster, for `all`.

    Raises:
        NoPlacement: for text of another form, devices that come twice, process ranks that do not
            count from 0 without gaps, several processes on a device, and segments with different
            numbers of devices a process.
    """
    devices: list[int] = []
    ranks: list[int] = []
    widths: set[int] = set()
    for segment in text.split(","):
        resources, sign, processes = segment.partition(":")
        mine = list(range(size)) if resources == "all" else _range(resources)
        theirs = _range(processes) if sign else list(range(len(ranks), len(ranks) + len(mine)))
        if len(theirs) > len(mine):
            raise NoPlacement(
                f"`{segment}` puts {len(theirs)} processes on {len(mine)} devices, and a rank "
                "here has a device for itself"
            )
        if len(mine) % len(theirs):
            raise NoPlacement(f"`{segment}`: {len(mine)} devices for {len(theirs)} processes")
        widths.add(len(mine) // len(theirs))
        devices += mine
        ranks += theirs
    if len(set(devices)) < len(devices):
        raise NoPlacement("a device is given twice")
    if ranks != list(range(len(ranks))):
        raise NoPlacement(f"process ranks of `{text}` do not count from 0 to {len(ranks) - 1}")
    if len(widths) > 1:
        raise NoPlacement(f"`{text}` gives some processes more devices than others")
    return PlacementText(tuple(devices), len(ranks) if ":" in text else None)


def _range(text: str) -> list[int]:
    try:
        found = list(parse_devices(text))
    except ValueError as error:
        raise NoPlacement(str(error)) from None
    if not found:
        raise NoPlacement("a segment is empty; write 0-3,6")
    return found
