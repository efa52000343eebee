"""Clusters from TOML files and from short names, and back to TOML.

name = "h100x16"

[[node_group]]
name = "train"
device = "H100"            # of the catalogue
nodes = 2                  # machines
devices_per_node = 8
cpus = 96                  # processor cores of each machine
price_per_hour = 2.5       # of a device, for the objective `cost`; may be left out
memory_gb = 80             # this and what follows: instead of the catalogue's figure
memory_bandwidth_gb_s = 3350
flops.bfloat16_tflops = 989
machines_inside = 1        # machines that `inside` connects: 18 of an NVL72 rack
[node_group.inside]        # between devices of one machine: one device and direction
bandwidth_gb_s = 450
latency_us = 4
[node_group.between]       # between machines
bandwidth_gb_s = 50
latency_us = 10

A device that the catalogue does not have needs all of these: memory_gb, memory_bandwidth_gb_s,
flops with float32_tflops, host_link, inside and between. It is a `gpu` unless `kind` says `cpu`.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rlinf_graph.ir import hardware
from rlinf_graph.ir.cluster import Cluster, DeviceType, Link, NodeGroup
from rlinf_graph.ir.detect import detect
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic, fail, suggest
from rlinf_graph.ir.span import Span

__all__ = ["detect", "dump_cluster", "load_cluster"]

CODE = "RG0405"
SHORT = re.compile(r"(\d+)\s*[x×*]\s*([A-Za-z][\w-]*)")
CORES_PER_GPU = 12  # of a short name: DGX H100 has 112 cores for 8 GPUs, cloud machines fewer

GROUP_KEYS = {
    **dict.fromkeys(("name", "device", "kind"), str),
    **dict.fromkeys(("nodes", "devices_per_node", "cpus", "machines_inside"), int),
    **dict.fromkeys(("memory_gb", "memory_bandwidth_gb_s", "price_per_hour"), float),
    **dict.fromkeys(("flops", "inside", "between", "host_link"), dict),
}
OWN_KEYS = ("memory_gb", "memory_bandwidth_gb_s", "flops", "host_link", "inside", "between")
OWN_SOURCE = "given in the cluster file"
LINK_KEYS = {"bandwidth_gb_s": float, "latency_us": float}
DTYPES = ("float64", "float32", "bfloat16", "float16", "float8", "float4")
KIND_NAMES = {str: "text", int: "a whole number", float: "a number", dict: "a table"}


def load_cluster(spec: str) -> Cluster:
    """The cluster that `spec` names.

    Args:
        spec: `local` (this machine), a short name such as `16xH100` or `8xH100+8xH20` (machines as
            the catalogue has them), or the path of a TOML file.

    Raises:
        CompileError: RG0405, with everything that is wrong with the file.
    """
    if spec == "local":
        return detect()
    parts = [SHORT.fullmatch(part.strip()) for part in spec.split("+")]
    if all(parts):
        return _of_short_names([(int(m[1]), m[2]) for m in parts if m], spec)
    path = Path(spec)
    if not path.is_file():
        forms = "write `local`, a count and a device such as `16xH100`, or the path of a TOML file"
        raise fail(CODE, f"there is no cluster file `{spec}`", help=(forms,))
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise fail(CODE, f"cannot read {spec}: {why}") from None
    return _Reader(str(path), text).cluster()


def dump_cluster(cluster: Cluster) -> str:
    """TOML that `load_cluster` reads as an equal cluster, every figure written out."""
    head = f"name = {_quoted(cluster.name)}\n"
    return head + "".join("\n" + _dump_group(group) for group in cluster.groups)


def _dump_group(group: NodeGroup) -> str:
    device = group.device
    lines = [
        "[[node_group]]",
        f"name = {_quoted(group.name)}",
        f"device = {_quoted(device.name)}",
        *([] if hardware.find(device.name) else [f"kind = {_quoted(device.kind)}"]),
        f"nodes = {group.nodes}",
        f"devices_per_node = {group.devices_per_node}",
        f"cpus = {group.cpus}",
        f"machines_inside = {group.machines_inside}",
        f"memory_gb = {_scaled(device.memory, hardware.GIGA)}",
        f"memory_bandwidth_gb_s = {_scaled(device.memory_bandwidth, hardware.GIGA)}",
        *([] if group.price_per_hour is None else [f"price_per_hour = {group.price_per_hour!r}"]),
        *(f"flops.{d}_tflops = {_scaled(f, hardware.TERA)}" for d, f in device.flops),
    ]
    for name in ("host_link", "inside", "between"):
        link: Link = device.host_link if name == "host_link" else getattr(group, name)
        lines += [
            f"[node_group.{name}]",
            f"bandwidth_gb_s = {_scaled(link.bandwidth, hardware.GIGA)}",
            f"latency_us = {_scaled(link.latency, hardware.MICRO)}",
        ]
    return "\n".join(lines) + "\n"


def _scaled(value: float, unit: float) -> str:
    """The shortest figure that gives exactly `value` when multiplied by `unit`."""
    for digits in range(1, 18):
        text = f"{value / unit:.{digits}g}"
        if float(text) * unit == value:
            return f"{float(text):g}" if float(f"{float(text):g}") == float(text) else text
    return repr(value / unit)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _of_short_names(parts: list[tuple[int, str]], spec: str) -> Cluster:
    groups = [_short_group(count, name) for count, name in parts]
    for index, group in enumerate(groups):
        if group.name in [g.name for g in groups[:index]]:
            groups[index] = replace(group, name=f"{group.name}-{index}")
    name = "+".join(f"{name.lower()}x{count}" for count, name in parts)
    return Cluster(name, tuple(groups), file=spec)


def _short_group(count: int, name: str) -> NodeGroup:
    entry = hardware.find(name)
    if entry is None:
        raise fail(CODE, f"there is no device `{name}`", help=(suggest(name, hardware.names()),))
    machine = entry.machine
    per_node = count if entry.device.kind == "cpu" else min(count, machine)
    if count < 1 or count % per_node:
        near = max(machine, count - count % machine)
        raise fail(
            CODE,
            f"`{count}x{name}` are not whole machines of {machine}",
            help=(f"write {near}x{name} or {near + machine}x{name}, or a cluster file",),
        )
    cores = count if entry.device.kind == "cpu" else CORES_PER_GPU * per_node
    return NodeGroup(
        name=name.lower(),
        device=entry.device,
        nodes=count // per_node,
        devices_per_node=per_node,
        cpus=cores,
        inside=entry.inside,
        between=entry.between,
        machines_inside=entry.machines_inside,
    )


class _Reader:
    """Reads one file and collects what is wrong with it."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.splitlines()
        self.text = text
        self.found: list[Diagnostic] = []

    def cluster(self) -> Cluster:
        """The cluster of the file; CompileError when anything is wrong."""
        data = self._parse()
        self._keys(data, {"name": str, "node_group": list}, group=None)
        tables = data.get("node_group", [])
        if not isinstance(tables, list) or not tables:
            self._wrong("a cluster has at least one [[node_group]]", line=1)
            tables = []
        groups = [self._group(t, i) for i, t in enumerate(cast("list[dict[str, Any]]", tables))]
        names = [group.name for group in groups if group]
        for name in sorted({n for n in names if names.count(n) > 1}):
            self._wrong(f"two node groups are called `{name}`", line=self._line("name", 1))
        if self.found:
            raise CompileError(self.found)
        name = str(data.get("name", Path(self.file).stem))
        return Cluster(name, tuple(g for g in groups if g), file=self.file)

    def _parse(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            where = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
            line = int(where[1]) if where else len(self.lines)
            reason = re.sub(r" \(at .*\)", "", str(error))
            self._wrong(f"this is not TOML: {reason}", line=max(1, line))
            raise CompileError(self.found) from None

    def _group(self, table: dict[str, Any], index: int) -> NodeGroup | None:
        before = len(self.found)
        self._keys(table, GROUP_KEYS, group=index)
        for name in ("name", "device", "nodes", "devices_per_node"):
            if name not in table:
                self._wrong(f"a node group needs `{name}`", line=self._line(None, index))
        for name in [key for key, kind in GROUP_KEYS.items() if kind in (int, float)]:
            if name in table and _number(table[name]) and table[name] <= 0:
                self._wrong(f"`{name}` has to be positive", line=self._line(name, index))
        entry = hardware.find(str(table.get("device", "")))
        links = [self._link(table, name, index) for name in ("host_link", "inside", "between")]
        flops = self._flops(table, index)
        own = entry is None and "device" in table
        if own:
            self._own(table, index)
        elif "kind" in table:
            self._wrong("`kind` is the catalogue's to say", line=self._line("kind", index))
        if (entry is None and not own) or len(self.found) > before:
            return None
        host_link, inside, between = links
        entry = entry or _own_entry(table, links)
        device = _changed(entry.device, table, flops, host_link)
        return NodeGroup(
            name=table["name"],
            device=device,
            nodes=table["nodes"],
            devices_per_node=table["devices_per_node"],
            cpus=table.get("cpus", CORES_PER_GPU * table["devices_per_node"]),
            inside=inside or entry.inside,
            between=between or entry.between,
            price_per_hour=table.get("price_per_hour"),
            machines_inside=table.get("machines_inside", entry.machines_inside),
        )

    def _own(self, table: dict[str, Any], index: int) -> None:
        """What is wrong with a device that the catalogue does not have."""
        name, line = table["device"], self._line("device", index)
        missing = [f"`{key}`" for key in OWN_KEYS if key not in table]
        if missing:
            known = suggest(str(name), hardware.names())
            if len(missing) < len(OWN_KEYS):
                known += f"; a device of your own needs {', '.join(missing)} too"
            self._wrong(f"there is no device `{name}` in the catalogue", line=line, help=known)
        elif isinstance(table["flops"], dict) and "float32_tflops" not in table["flops"]:
            self._wrong(f"`{name}` needs `float32_tflops`", line=self._line("flops", index))
        if table.get("kind", "gpu") not in ("gpu", "cpu"):
            self._wrong("`kind` has to be gpu or cpu", line=self._line("kind", index))

    def _link(self, table: dict[str, Any], name: str, index: int) -> Link | None:
        fields = table.get(name)
        if not isinstance(fields, dict):
            return None
        link = cast("dict[str, Any]", fields)
        good = self._keys(link, LINK_KEYS, group=index, within=name)
        line = self._line(name, index)
        missing = [key for key in LINK_KEYS if key not in link]
        for key in missing:
            self._wrong(f"`{name}` needs `{key}`", line=line)
        if missing or not good:
            return None
        if link["bandwidth_gb_s"] <= 0 or link["latency_us"] < 0:
            self._wrong(f"`{name}` needs a positive bandwidth, and no negative latency", line=line)
            return None
        return hardware.link(**link)

    def _flops(self, table: dict[str, Any], index: int) -> dict[str, float]:
        fields = table.get("flops", {})
        if not isinstance(fields, dict):
            return {}
        given = cast("dict[str, Any]", fields)
        known = {f"{dtype}_tflops": float for dtype in DTYPES}
        if not self._keys(given, known, group=index, within="flops"):
            return {}
        for key, value in given.items():
            if value <= 0:
                self._wrong(f"`{key}` has to be positive", line=self._line(key, index))
        return {k.removesuffix("_tflops"): v * hardware.TERA for k, v in given.items()}

    def _keys(
        self, table: dict[str, Any], known: dict[str, type], group: int | None, within: str = ""
    ) -> bool:
        """Whether every key is known and has a value of its kind."""
        before = len(self.found)
        for key, value in table.items():
            line, place = self._line(key, group), f" in `{within}`" if within else ""
            if key not in known:
                self._wrong(f"unknown key `{key}`{place}", line=line, help=suggest(key, known))
            elif not _is(value, known[key]) and known[key] in KIND_NAMES:
                self._wrong(f"`{key}`{place} has to be {KIND_NAMES[known[key]]}", line=line)
        return len(self.found) == before

    def _line(self, key: str | None, group: int | None) -> int:
        """The line that sets `key` in the given node group, or where that group begins."""
        headers = [i for i, t in enumerate(self.lines) if re.match(r"\s*\[\[\s*node_group", t)]
        first = headers[group] if group is not None and group < len(headers) else 0
        end = headers[group + 1] if group is not None and group + 1 < len(headers) else None
        if key is not None:
            pattern = re.compile(rf"^\s*(\[+[\w.]*\b|[\w.]+\.)?{re.escape(key)}\s*(=|\]|\.)")
            for number, text in enumerate(self.lines[first:end], start=first + 1):
                if pattern.match(text):
                    return number
        return first + 1

    def _wrong(self, message: str, line: int, help: str | None = None) -> None:
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        column = len(text) - len(text.lstrip()) + 1
        span = Span(self.file, line, column, line, len(text.rstrip()) + 1)
        self.found.append(Diagnostic(CODE, message, span, help=(help,) if help else ()))


def _own_entry(table: dict[str, Any], links: list[Link | None]) -> hardware.Entry:
    """What a catalogue would have of the user's device; `_changed` puts the figures in."""
    host_link, inside, between = (cast("Link", link) for link in links)
    kind = table.get("kind", "gpu")
    device = DeviceType(table["device"], kind, 0, 0, (), host_link, OWN_SOURCE)
    return hardware.Entry(device, (), inside, between, hardware.MACHINE, 1)


def _changed(
    device: DeviceType, table: dict[str, Any], flops: dict[str, float], host_link: Link | None
) -> DeviceType:
    """The catalogue's device with the figures that the file replaces."""
    figures: dict[str, Any] = {}
    if "memory_gb" in table:
        figures["memory"] = table["memory_gb"] * hardware.GIGA
    if "memory_bandwidth_gb_s" in table:
        figures["memory_bandwidth"] = table["memory_bandwidth_gb_s"] * hardware.GIGA
    if host_link is not None:
        figures["host_link"] = host_link
    if flops:
        figures["flops"] = tuple((dict(device.flops) | flops).items())
    changed = replace(device, **figures)
    if changed == device or device.source == OWN_SOURCE:
        return changed
    return replace(changed, source=f"{device.source}; changed")


def _is(value: Any, kind: type) -> bool:
    return _number(value) if kind is float else isinstance(value, kind) and value is not True


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
