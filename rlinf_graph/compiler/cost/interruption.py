"""What it costs to take weights in the middle of generation, beside their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlinf_graph.compiler.cost.model import CostModel
from rlinf_graph.ir.graph import Node
from rlinf_graph.ir.plan import NodePlan
from rlinf_graph.ir.work import Generate


def again_seconds(
    costs: CostModel, node: Node, devices: Sequence[int], settings: NodePlan
) -> float:
    """Seconds to read again what is under way when weights come while a node generates.

    Once in an iteration: all that its engines sample at the same time, at a random moment.
    """
    if not isinstance(node.work, Generate):
        return 0.0
    cut = replace(node, work=replace(node.work, cuts=1 / settings.chunks))
    once, whole = (costs.node(each, devices, settings) for each in (cut, node))
    return once.seconds - whole.seconds
