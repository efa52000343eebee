"""What a node costs: the seconds and bytes of one layout, and how they come together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlinf_graph.compiler.cost.constants import STEP_SECONDS, Constants
from rlinf_graph.compiler.cost.layout import Hardware
from rlinf_graph.compiler.cost.passes import Parts
from rlinf_graph.ir.graph import Node

Items = tuple[tuple[str, float], ...]
PROFILED = "profiled"


@dataclass(frozen=True)
class NodeCost:
    """What a node costs in one iteration.

    Attributes:
        seconds: its devices are busy with it, all chunks together.
        parts: seconds by cause; their sum is `seconds`.
        resident: bytes of each device that stay between uses, by what they hold.
        working: bytes of each device only while the node runs.
        load_s: seconds to bring the resident part from host memory.
        offload_s: seconds to take it there.
        origin: `roofline`, `measured kernel`, `profiled` or `declared`.
        width: half the width of the 80 % interval of `seconds`, as a logarithm; 0 for what nobody
            can tell, such as declared host work.
        fallback: why measured kernels that were asked for have no figure; empty where they have.
    """

    seconds: float
    parts: Items = ()
    resident: Items = ()
    working: Items = ()
    load_s: float = 0.0
    offload_s: float = 0.0
    origin: str = "roofline"
    width: float = 0.0
    fallback: str = ""


def moving_s(size: float, hardware: Hardware, constants: Constants) -> float:
    """Seconds to bring so many bytes from host memory, or to take them there."""
    link = hardware.host_link
    return size / (link.bandwidth * constants.iteration.host_link) + link.latency


def in_loop(cost: NodeCost, node: Node, chunks: int) -> NodeCost:
    """The cost of a node in all steps of the loops around it, from that of one step."""
    if not node.region:
        return cost
    parts = [(name, seconds * node.steps) for name, seconds in cost.parts]
    parts.append(("loop", STEP_SECONDS * node.steps * chunks))
    return replace(cost, seconds=sum(s for _name, s in parts), parts=tuple(parts))


def items(parts: Parts) -> Items:
    """Parts that are not zero."""
    return tuple((name, value) for name, value in parts.items() if value)
