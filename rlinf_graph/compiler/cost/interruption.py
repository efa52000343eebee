"""What it costs to take weights in the middle of generation, beside their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlinf_graph.compiler.cost.model import CostModel
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.plan import NodePlan
from rlinf_graph.ir.work import Generate


def again_seconds(
    costs: CostModel, graph: Graph, node: Node, devices: Sequence[int], settings: NodePlan
) -> float:
    """Seconds of an iteration to read again what is under way when weights come in the middle.

    Once for each delivery: all that a node's engines sample at the same time, at a random moment.
    """
    ports = {use.delivered for use in node.models}
    syncs = [sync for port, sync in graph.deliveries().items() if port in ports]
    if not isinstance(node.work, Generate) or not syncs:
        return 0.0
    often = max(1 / sync.option("every") for sync in syncs)
    cut = replace(node, work=replace(node.work, cuts=often / settings.chunks))
    once, whole = (costs.node(each, devices, settings) for each in (cut, node))
    return once.seconds - whole.seconds
