"""Which of a profile's corrections belongs to which node on which devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlinf_graph.compiler.cost.layout import dtype_of, place_of
from rlinf_graph.compiler.cost.passes import Parts
from rlinf_graph.compiler.cost.profile import (
    HANDOVER,
    NOT_SCALED,
    SYNC,
    Correction,
    Profile,
    Subject,
    subject_of_host,
    subject_of_model,
    subject_of_module,
)
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.compiler.cost.uncertainty import of_profile, together
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph, ModelDef, Node
from rlinf_graph.ir.measurement import Kind
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.operations import Operations
from rlinf_graph.ir.plan import NodePlan
from rlinf_graph.ir.work import Forward, Generate, Train

DEVICE_KINDS: tuple[Kind, ...] = ("chunk", "accumulate", "optimizer_step")


@dataclass(frozen=True)
class Corrector:
    """A node's corrections by kind of instruction; where there is none, nothing changes.

    Attributes:
        found: the corrections.
        ranks: data-parallel ranks, which wait for one another.
    """

    found: Mapping[Kind, Correction] = field(default_factory=dict[Kind, Correction])
    ranks: int = 1

    def __call__(self, kind: Kind, parts: Parts) -> Parts:
        """The parts of one instruction, corrected."""
        made = self.found.get(kind)
        return made.parts(parts, self.ranks) if made else parts

    def width(self, kinds: Sequence[Kind], parts: Parts, closed: float) -> float:
        """The width of the sum of parts of these kinds, where closed forms have the width `closed`.

        What one device alone cannot show stays a closed form.
        """
        made = [self.found[kind] for kind in kinds if kind in self.found]
        if len(made) < len(kinds):
            return closed
        profiled = max(of_profile(c.residual, c.spread) for c in made)
        return together(
            (seconds, closed if cause.endswith(NOT_SCALED) else profiled)
            for cause, seconds in parts.items()
        )

    def covers(self, *kinds: Kind) -> bool:
        """Whether all of these have been measured."""
        return set(kinds) <= set(self.found)


@dataclass(frozen=True)
class Corrections:
    """A profile seen from one graph on one cluster; without a profile nothing is found."""

    cluster: Cluster
    models: Mapping[str, ModelDef]
    shapes: Mapping[str, ModelShape]
    profile: Profile | None
    _known: dict[tuple[str, Sequence[int], str, int], Corrector] = field(
        default_factory=dict[tuple[str, Sequence[int], str, int], Corrector], compare=False
    )

    def subject(self, node: Node, devices: Sequence[int], settings: NodePlan) -> Subject:
        """What a profile calls the node on these devices; host nodes and syncs have subjects too.

        Devices of different types have no measurement together: their names are joined.
        """
        if node.role is Role.SYNC:
            return self._delivery(node.model or "", devices[0])
        names = sorted({group.device.name for group in self.cluster.groups_of(devices)})
        if isinstance(node.work, Operations):
            return subject_of_module(node, node.work, settings.engine, " + ".join(names))
        if not isinstance(node.work, Generate | Forward | Train):
            return subject_of_host(node)
        return self._of_model(
            node.type, node.model or "", devices, settings.engine, " + ".join(names)
        )

    def node(self, node: Node, devices: Sequence[int], settings: NodePlan) -> Corrector:
        """The corrections of a device node."""
        if self.profile is None:
            return Corrector()
        ranks = settings.parallel.dp
        key = (node.name, place_of(devices), settings.engine, ranks)
        if key not in self._known:
            subject = self.subject(node, devices, settings)
            found: dict[Kind, Correction] = {
                kind: made for kind in DEVICE_KINDS if (made := self.profile.find(subject, kind))
            }
            self._known[key] = Corrector(found, ranks)
        return self._known[key]

    def host(self, node: Node) -> Correction | None:
        """The correction of a host node."""
        return self.profile.find(subject_of_host(node), "host") if self.profile else None

    def handover(self) -> Correction | None:
        """The correction of a batch's way from worker to worker."""
        return self.profile.find(Subject(HANDOVER), "handover") if self.profile else None

    def sync(self, model: str, device: int) -> Correction | None:
        """The correction of a delivery of weights."""
        if self.profile is None:
            return None
        return self.profile.find(self._delivery(model, device), "sync")

    def any_of(self, graph: Graph) -> bool:
        """Whether any node of a graph has been measured, with the engines' defaults."""
        known = {c.subject for c in self.profile.corrections} if self.profile else set[Subject]()
        first, places = 0, list[int]()
        for group in self.cluster.groups:
            places.append(first)
            first += group.size
        return any(
            self.subject(node, (place,), NodePlan()) in known
            for node in graph.nodes
            for place in places
        )

    def _delivery(self, model: str, device: int) -> Subject:
        name = self.cluster.group_of(device).device.name
        return self._of_model(SYNC, model, (device,), "", name)

    def _of_model(
        self, node_type: str, model: str, devices: Sequence[int], engine: str, device: str
    ) -> Subject:
        kinds = {group.device.kind for group in self.cluster.groups_of(devices)}
        definition, shape = self.models[model], self.shapes[model]
        dtype = dtype_of(definition, "cpu" if "cpu" in kinds else "gpu")
        return subject_of_model(node_type, definition, shape, dtype, engine, device)
