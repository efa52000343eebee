"""What the user has decided already: devices and settings of nodes, and of the plan as a whole.

A pin maps a name to words. A name is a node's in full, its first word where that is enough, a
component of RLinf's `component_placement` (`actor`, `critic`, `rollout`, `inference`, `reward`),
several of them with commas between, or `plan`. docs/scheduler.md has the words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rlinf_graph.compiler.check_plan import device_nodes
from rlinf_graph.compiler.schedule.placement_text import NoPlacement, placement_of
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors, suggest
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.plan import NodePlan, show_devices
from rlinf_graph.ir.work import Generate

MODES = ("collocated", "disaggregated", "hybrid")
NUMBERS = ("dp", "tp", "pp", "cp", "ep", "micro-batch")
SWITCHES = {
    "fsdp": ("shard", "fsdp"),
    "replicated": ("shard", "none"),
    "recompute": ("recompute", True),
    "no-recompute": ("recompute", False),
    "resident": ("resident", True),
    "offloaded": ("resident", False),
}
EXAMPLE = "write devices, settings or both: 0-7 tp 2"
PLAN = "plan"


@dataclass(frozen=True)
class Pin:
    """What is given of a node; None where the compiler chooses.

    Attributes:
        devices: exactly these.
        dp, tp, pp, cp, ep, micro_batch, shard, recompute, engine: as in `NodePlan`.
        resident: whether its state stays on the device while others have their turn.
    """

    devices: tuple[int, ...] | None = None
    dp: int | None = None
    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    ep: int | None = None
    micro_batch: int | None = None
    shard: str | None = None
    recompute: bool | None = None
    engine: str | None = None
    resident: bool | None = None

    def __str__(self) -> str:
        """As it is written: `0-7 tp 2`."""
        words = [] if self.devices is None else [show_devices(self.devices)]
        for name in NUMBERS:
            value = getattr(self, name.replace("-", "_"))
            words += [f"{name} {value}"] if value else []
        words += [f"engine {self.engine}"] if self.engine else []
        words += [word for word, (name, value) in SWITCHES.items() if getattr(self, name) == value]
        return " ".join(words)

    def allows(self, settings: NodePlan) -> bool:
        """Whether a node's settings agree, whatever its devices."""
        parallel = settings.parallel
        found: dict[str, Any] = {
            "engine": settings.engine,
            "micro_batch": settings.micro_batch,
            "recompute": settings.recompute,
            **{axis: getattr(parallel, axis) for axis in ("dp", "tp", "pp", "cp", "ep", "shard")},
        }
        return all(getattr(self, name) in (None, value) for name, value in found.items())


FREE = Pin()


@dataclass(frozen=True)
class PlanPin:
    """What is given of the plan as a whole."""

    mode: str | None = None
    staleness: int | None = None
    chunks: int | None = None

    def __str__(self) -> str:
        """As it is written: `disaggregated staleness 1`."""
        words = [self.mode] if self.mode else []
        for name in ("staleness", "chunks"):
            value = getattr(self, name)
            words += [f"{name} {value}"] if value is not None else []
        return " ".join(words)


@dataclass(frozen=True)
class Pins:
    """All pins."""

    nodes: Mapping[str, Pin] = field(default_factory=dict[str, Pin])
    plan: PlanPin = PlanPin()

    def __bool__(self) -> bool:
        """Whether anything is given."""
        return bool(self.nodes) or self.plan != PlanPin()

    def names(self) -> list[str]:
        """Of all that is pinned; `plan` for the plan."""
        return [*self.nodes, *([PLAN] if self.plan != PlanPin() else [])]

    def only(self, names: frozenset[str]) -> Pins:
        """Those with some names."""
        nodes = {name: pin for name, pin in self.nodes.items() if name in names}
        return Pins(nodes, self.plan if PLAN in names else PlanPin())

    def text(self, name: str) -> str:
        """One pin as it is written."""
        return str(self.plan if name == PLAN else self.nodes[name])


def read_pins(graph: Graph, cluster: Cluster, more: Mapping[str, str]) -> Pins:
    """Pins by node name, from the pipeline's declaration and from the command line.

    Raises:
        CompileError: RG0402 for devices that do not exist, RG0407 for what cannot be read.
    """
    nodes: dict[str, Pin] = {}
    plan, found = PlanPin(), list[Diagnostic]()
    for given, text in {**dict(graph.pins), **more}.items():
        if given == PLAN:
            try:
                plan = _parse_plan(text)
            except ValueError as error:
                found.append(_unread(graph, given, str(error), "write mode, staleness, chunks: "
                                     "disaggregated staleness 1"))  # fmt: skip
            continue
        for name in (part.strip() for part in given.split(",")):
            matches = matching(graph, name)
            if not matches:
                found.append(_unknown(graph, given, name))
                continue
            try:
                pin = _parse(text, cluster.size)
            except ValueError as error:
                found.append(_unread(graph, given, str(error), EXAMPLE))
                break
            nodes |= dict.fromkeys(matches, pin)
            found += [d for match in matches for d in _missing(graph, cluster, match, pin)]
    raise_errors(found)
    return Pins(nodes, plan)


def matching(graph: Graph, name: str) -> list[str]:
    """The device nodes that a name stands for; none where it is not clear."""
    nodes = device_nodes(graph)
    exact = [node.name for node in nodes if node.name == name]
    first = [node.name for node in nodes if node.name.split()[0] == name]
    if exact or len(first) == 1:
        return exact or first
    return [node.name for node in nodes if name in _components(graph, node)] if not first else []


def _components(graph: Graph, node: Node) -> tuple[str, ...]:
    """What RLinf calls the worker group of such a node."""
    head = next((m.head for m in graph.models if m.name == node.model), "lm")
    if node.role is Role.TRAIN:
        return ("critic",) if head == "value" else ("actor",)
    if node.role is not Role.COMPUTE:
        return ()
    if isinstance(node.work, Generate) or node.type == "act":
        return ("rollout",)
    heads = {"lm": "inference", "value": "critic_inference", "score": "reward"}
    named = heads.get(getattr(node.work, "head", ""))
    return (named,) if named else ()


def _parse(text: str, size: int) -> Pin:
    """Devices, then words; ValueError says what is wrong."""
    match = re.match(r"\s*(all\b|[\d,:\-\s]*\d)?\s*(.*)", text)
    devices, rest = (match[1], match[2]) if match else (None, text)
    pin = _settings(rest.split())
    if devices:
        try:
            place = placement_of(devices.replace(" ", ""), size)
        except NoPlacement as error:
            raise ValueError(str(error)) from None
        if place.processes is not None and place.processes != len(place.devices):
            if pin.dp not in (None, place.processes):
                raise ValueError(f"{place.processes} processes, but dp {pin.dp}")
            pin = replace(pin, dp=place.processes)
        pin = replace(pin, devices=place.devices)
    if pin == FREE:
        raise ValueError("nothing is given")
    return pin


def _settings(words: list[str]) -> Pin:
    given: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if word in SWITCHES:
            name, value = SWITCHES[word]
        elif word == "engine" and left:
            name, value = word, left.pop(0)
        elif word in NUMBERS and left and re.fullmatch(r"[1-9]\d{0,5}", left[0]):
            name, value = word.replace("-", "_"), int(left.pop(0))
        else:
            raise ValueError(f"`{word}` is not understood")
        if name in given:
            raise ValueError(f"{word} is given twice")
        given[name] = value
    return Pin(**given)


def _parse_plan(text: str) -> PlanPin:
    given: dict[str, Any] = {}
    left = text.split()
    while left:
        word = left.pop(0)
        if word in MODES:
            name, value = "mode", word
        elif word in ("staleness", "chunks") and left and left[0].isdecimal():
            name, value = word, int(left.pop(0))
        else:
            raise ValueError(f"`{word}` is not understood")
        if name in given:
            raise ValueError(f"{name} is given twice")
        given[name] = value
    if not given:
        raise ValueError("nothing is given")
    return PlanPin(**given)


def _unread(graph: Graph, given: str, why: str, help_text: str) -> Diagnostic:
    message = f"pin `{given}`: {why}"
    return Diagnostic("RG0407", message, graph.span, help=(help_text,))


def _unknown(graph: Graph, given: str, name: str) -> Diagnostic:
    names = [node.name for node in device_nodes(graph)]
    several = sum(other.split()[0] == name for other in names)
    which = f"matches {several} nodes" if several else "is no device node"
    message = f"pin `{given}`: `{name}` {which} of `{graph.name}`"
    return Diagnostic("RG0407", message, graph.span, help=(suggest(name, names),))


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
