"""A simulated plan in its steady state: one iteration's window of events, cut by devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from rlinf_graph.compiler.cost import CostModel, NodeCost
from rlinf_graph.compiler.explain.report import Lane
from rlinf_graph.compiler.explain.segment import Kind, Segment
from rlinf_graph.compiler.lower import is_host, works
from rlinf_graph.compiler.schedule.candidate import companions
from rlinf_graph.compiler.schedule.memory import RESERVED
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.plan import Plan, show_devices
from rlinf_graph.ir.timeline import Event

KIND: dict[str, Kind] = {"load": "switch", "offload": "switch", "sync": "weights"}
FOLD = 0.01
"""Host nodes below this share of the iteration are not worth a figure."""


@dataclass(frozen=True)
class Steady:
    """A plan with its simulated events.

    Attributes:
        seconds: of an iteration, averaged over the settled half.
        events: of all simulated iterations.
        iterations: how many those are.
    """

    graph: Graph
    cluster: Cluster
    plan: Plan
    costs: CostModel
    events: Sequence[Event]
    iterations: int
    seconds: float

    @cached_property
    def lag(self) -> int:
        """The largest staleness of a sync."""
        return max((sync.staleness for sync in self.plan.syncs.values()), default=0)

    @cached_property
    def ends(self) -> list[float]:
        """When each iteration's last event is over."""
        ends = [0.0] * self.iterations
        for event in self.events:
            ends[event.at.iteration] = max(ends[event.at.iteration], event.end)
        return ends

    @cached_property
    def iteration(self) -> int:
        """The iteration that is shown: settled, and with all that overlaps it simulated.

        Later iterations run beside it, up to `lag + 1` of them, so the last ones do not serve. Of
        the rest the one whose window is nearest to the average; the last of equals.
        """
        last = max(self.iterations - 2 - self.lag, min(1, self.iterations - 1))
        choices = range(min(self.iterations // 2, last), last + 1)
        return min(choices, key=lambda k: (round(abs(self._length(k) / self.seconds - 1), 6), -k))

    def _length(self, iteration: int) -> float:
        return self.ends[iteration] - (self.ends[iteration - 1] if iteration else 0.0)

    @cached_property
    def window(self) -> tuple[float, float]:
        """From the end of the iteration before to the end of the one shown."""
        end = self.ends[self.iteration]
        return end - self._length(self.iteration), end

    @cached_property
    def origin(self) -> float:
        """When a device (without devices: anything) first works for the iteration shown."""
        own = [e for e in self.events if e.at.iteration == self.iteration]
        return min((e.start for e in [e for e in own if e.devices] or own), default=0.0)

    def events_of(self, name: str) -> list[Event]:
        """A node's events of the iteration shown."""
        return [e for e in self.events if e.group == name and e.at.iteration == self.iteration]

    def kind_of(self, device: int) -> str:
        """`gpu` or `cpu`."""
        return self.cluster.group_of(device).device.kind

    @cached_property
    def device_kind(self) -> str:
        """Of the cluster's devices; `device` where they differ."""
        kinds = {group.device.kind for group in self.cluster.groups}
        return kinds.pop() if len(kinds) == 1 else "device"

    @cached_property
    def host(self) -> str:
        """What the processors beside the devices are called."""
        return "host" if self.device_kind == "cpu" else "cpu"

    def where(self, devices: Sequence[int]) -> str:
        """Such as `gpu 0-7`."""
        kinds = {self.kind_of(device) for device in devices}
        return f"{kinds.pop() if len(kinds) == 1 else 'device'} {show_devices(devices)}"

    def cost(self, name: str) -> NodeCost:
        """What a node costs."""
        node = self.graph.node(name)
        if is_host(node):
            processes = self.plan.host.get(name, 1)
            return self.costs.host(node, processes, self.cluster.groups[0])
        return self.costs.node(node, self.plan.devices(name), self.plan.settings(name))

    @cached_property
    def shared(self) -> dict[str, str]:
        """Nodes that use another one's engine on its devices and keep nothing of their own."""
        return {
            name: leader
            for name, leader in companions(self.graph).items()
            if set(self.plan.devices(name)) <= set(self.plan.devices(leader))
        }

    def kept(self, name: str) -> float:
        """Bytes of each of its devices that a node keeps while others run."""
        if name in self.shared or not self.plan.settings(name).resident:
            return 0.0
        return sum(size for _part, size in self.cost(name).resident)

    def needed(self, name: str) -> tuple[tuple[str, float], ...]:
        """Bytes of each of its devices by what they hold, while the node runs."""
        cost = self.cost(name)
        held = self.cost(self.shared[name]).resident if name in self.shared else cost.resident
        return (*held, *cost.working)

    def others(self, name: str, device: int) -> float:
        """Bytes that other nodes keep on a device while this one runs."""
        own = {name, self.shared.get(name, name)}
        names = [x.node for x in self.plan.leaves() if device in x.devices]
        return sum(self.kept(other) for other in names if other not in own)

    def peak(self, device: int) -> float:
        """Bytes of a device when most is needed."""
        names = [leaf.node for leaf in self.plan.leaves() if device in leaf.devices]
        return max((total(self.needed(n)) + self.others(n, device) for n in names), default=0.0)

    @cached_property
    def blocks(self) -> list[tuple[int, ...]]:
        """Devices with the same nodes, those with the lowest number first; idle ones too."""
        return device_blocks(self.plan, self.cluster)

    @cached_property
    def lanes(self) -> list[Lane]:
        """All that happens in the window: blocks of devices, then host nodes."""
        lanes: list[Lane] = []
        for block in self.blocks:
            segments = self._segments(e for e in self.events if block[0] in e.devices)
            lanes.append(
                Lane(
                    where=self.where(block),
                    count=len(block),
                    busy_s=covered(segments),
                    segments=segments,
                    peak=self.peak(block[0]),
                    capacity=(memory := self.cluster.group_of(block[0]).device.memory),
                    usable=memory * (1 - RESERVED),
                )
            )
        for node in self.graph.nodes:
            if works(node) and is_host(node):
                segments = self._segments(e for e in self.events if e.group == node.name)
                lanes.append(Lane(self.host, 0, covered(segments), segments))
        return lanes

    def cheap(self, node: Node) -> bool:
        """Whether a node is folded."""
        busy = sum(event.seconds for event in self.events_of(node.name))
        return is_host(node) and busy < FOLD * self.seconds

    def _segments(self, events: Iterable[Event]) -> tuple[Segment, ...]:
        start, end = self.window
        made: list[Segment] = []
        for event in sorted(events, key=lambda e: (e.start, e.end)):
            first, last = max(event.start, start) - start, min(event.end, end) - start
            if last <= first:
                continue
            segment = Segment(event.group, KIND.get(event.kind, "work"), first, last)
            before = made[-1] if made else None
            same = before and (before.node, before.kind) == (segment.node, segment.kind)
            if before and same and first - before.end_s <= 1e-9 * (end - start):
                made[-1] = Segment(before.node, before.kind, before.start_s, last)
            else:
                made.append(segment)
        return tuple(made)


def device_blocks(plan: Plan, cluster: Cluster) -> list[tuple[int, ...]]:
    """Devices with the same nodes, those with the lowest number first; idle ones too."""
    blocks: dict[tuple[str, ...], list[int]] = {}
    for device in range(cluster.size):
        names = tuple(leaf.node for leaf in plan.leaves() if device in leaf.devices)
        blocks.setdefault((cluster.group_of(device).name, *names), []).append(device)
    return [tuple(devices) for devices in blocks.values()]


def total(parts: Iterable[tuple[str, float]]) -> float:
    """The sum of named figures."""
    return sum(size for _name, size in parts)


def covered(segments: Iterable[Segment]) -> float:
    """Seconds in which at least one segment runs. They come in the order of their starts."""
    seconds = until = 0.0
    for segment in segments:
        seconds += max(0.0, segment.end_s - max(segment.start_s, until))
        until = max(until, segment.end_s)
    return seconds
