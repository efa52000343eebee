"""Which Ray node holds which machine of the cluster, and a placement group for each."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlinf_graph.backends.cores import variables
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.diagnostic import CompileError, fail

READY_S = 60.0
LABEL = "rlinf-graph/node-group"
"""A Ray node with this label belongs to the node group it names; others fit any."""


class Placement:
    """Bundles for all devices, in the order of their numbers."""

    def __init__(self, cluster: Cluster) -> None:
        """Reserve every machine of the cluster on a Ray node of its own.

        Raises:
            CompileError: RG0608, when Ray has too few nodes that fit.
        """
        self._cluster = cluster
        self._groups: list[Any] = []
        free = _alive_nodes()
        try:
            for group in cluster.groups:
                for _machine in range(group.nodes):
                    node = _take(free, group)
                    self._groups.append(_reserve(group, node))
        except CompileError:
            self.remove()
            raise

    def options(self, device: int) -> dict[str, Any]:
        """Of the actor that is a device's worker."""
        group = self._cluster.group_of(device)
        need = resources(group)
        options: dict[str, Any] = {
            "num_cpus": need.get("CPU", 0),
            "num_gpus": need.get("GPU", 0),
            "scheduling_strategy": self._strategy(device),
        }
        if group.device.kind == "cpu":
            options["runtime_env"] = {"env_vars": variables()}
        return options

    def _strategy(self, device: int) -> PlacementGroupSchedulingStrategy:
        first = machine = 0
        for group in self._cluster.groups:
            if device < first + group.size:
                place, bundle = divmod(device - first, group.devices_per_node)
                return PlacementGroupSchedulingStrategy(
                    self._groups[machine + place], placement_group_bundle_index=bundle
                )
            first, machine = first + group.size, machine + group.nodes
        raise IndexError(f"device {device} of a cluster with {self._cluster.size}")

    def remove(self) -> None:
        """Give everything back."""
        for group in self._groups:
            remove_placement_group(group)


def resources(group: NodeGroup) -> dict[str, float]:
    """What one device of a node group is to Ray."""
    return {"GPU": 1.0} if group.device.kind == "gpu" else {"CPU": 1.0}


def _alive_nodes() -> list[dict[str, Any]]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    return sorted(alive, key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))


def _take(free: list[dict[str, Any]], group: NodeGroup) -> dict[str, Any]:
    """The first free Ray node that can be a machine of this group."""
    (kind,) = resources(group)
    for node in free:
        named = node.get("Labels", {}).get(LABEL)
        enough = node["Resources"].get(kind, 0) >= group.devices_per_node
        if enough and named in (None, group.name):
            free.remove(node)
            return node
    has = ", ".join(f"{n['Resources'].get(kind, 0):g}" for n in _alive_nodes())
    raise fail(
        "RG0608",
        f"Ray has no free node with {group.devices_per_node} {kind} for node group `{group.name}`",
        notes=(f"the Ray cluster's nodes have {has or 'no'} {kind}",),
        help=(
            "plan for what is there: --cluster local, or a cluster file that describes it",
            f'start Ray nodes with --labels "{LABEL}={group.name}" to say which group they are',
        ),
    )


def _reserve(group: NodeGroup, node: dict[str, Any]) -> Any:
    bundle = resources(group)
    selector = {"ray.io/node-id": node["NodeID"]}
    made = placement_group(
        [bundle] * group.devices_per_node,
        strategy="STRICT_PACK",
        bundle_label_selector=[selector] * group.devices_per_node,
    )
    if not made.wait(READY_S):
        remove_placement_group(made)
        message = f"Ray did not give node group `{group.name}` its devices in {READY_S:.0f} s"
        raise fail("RG0608", message, help=("another job holds them: ray status",))
    return made
