"""What a node costs on given devices: seconds and bytes in closed form, by cause."""

from rlinf_graph.compiler.cost.model import CostModel, NodeCost

__all__ = ["CostModel", "NodeCost"]
