"""What a node costs on given devices: seconds and bytes in closed form, by cause."""

from rlinf_graph.compiler.cost.model import CostModel
from rlinf_graph.compiler.cost.node_cost import NodeCost

__all__ = ["CostModel", "NodeCost"]
