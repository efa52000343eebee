"""What a drawing says of a node, a loop and a delivery of weights."""

from __future__ import annotations

from typing import Literal

from rlinf_graph.compiler.lower import cadence
from rlinf_graph.dsl.node import definitions
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Place, Role, Unit

Kind = Literal["source", "device", "host", "state", "train", "evaluate", "sync"]
KINDS: tuple[Kind, ...] = ("source", "device", "host", "state", "train", "evaluate", "sync")
BY_ROLE: dict[Role, Kind] = {
    Role.SOURCE: "source",
    Role.TRAIN: "train",
    Role.SYNC: "sync",
    Role.EVALUATE: "evaluate",
    Role.STATE: "state",
}
SHOWN_VALUES = 8
"""Parameters of a pipeline that its heading shows."""


def kind_of(node: Node) -> Kind:
    """What a node is drawn as: its role, and for a node that computes where it does."""
    if node.role in BY_ROLE:
        return BY_ROLE[node.role]
    known = definitions.get(node.type)
    device = known.type.place is Place.DEVICE if known else bool(node.models)
    return "device" if device else "host"


def is_barrier(node: Node) -> bool:
    """Whether a node that works waits for a whole batch; weights are no batch."""
    works = node.role not in (Role.REGION, Role.STATE, Role.SOURCE, Role.SYNC)
    takes = any(given.type != "Weights" for given in node.inputs)
    return works and takes and node.unit is Unit.BATCH


def uses(node: Node) -> str:
    """The models and environments of a node, such as `policy served`."""
    models = [f"{use.model} {use.served or use.port.value}" for use in node.models]
    return ", ".join([*models, *(env for _param, env in node.envs)])


def detail(graph: Graph, node: Node) -> str:
    """The second line of a node's box."""
    rarely = every(graph, node)
    brief = "kept between iterations" if node.role is Role.STATE else kind_of(node)
    return (uses(node) or brief) + (f" · {rarely}" if rarely else "")


def every(graph: Graph, node: Node) -> str:
    """Such as `every 20`, for a node that acts in every 20th iteration; empty for every one."""
    rate = node.option("every") if node.role is Role.SYNC else cadence(graph, node)
    return f"every {rate}" if rate and rate > 1 else ""


def loop_name(node: Node) -> str:
    """Such as `loop interact`."""
    return node.name if node.name.startswith("loop ") else f"loop {node.name}"


def loop_steps(node: Node) -> str:
    """Such as `at most 80 steps · until done`."""
    if node.loop is None:
        return ""
    steps = counted(node.loop.length, "step")
    if not node.loop.until:
        return steps
    fewer = 0 < node.loop.expected < node.loop.length
    expected = f" · {node.loop.expected:.3g} expected" if fewer else ""
    return f"at most {steps} · until {node.loop.until}{expected}"


def delivery(graph: Graph, sync: Node) -> list[str]:
    """How late weights may be, and how rarely they come; what a named port keeps of its own."""
    bound, rarely = sync.option("max_staleness"), every(graph, sync)
    if sync.models[0].served:
        decay = sync.models[0].decay
        return [f"decay {decay:g}" if decay else "taken over", *([rarely] if rarely else [])]
    late = "staleness unbounded" if bound is None else f"staleness ≤ {bound}"
    midway = ["interrupts"] if sync.option("interrupt") else []
    return [late, *([rarely] if rarely else []), *midway]


def parameters(graph: Graph) -> str:
    """The values that a pipeline was built with."""
    shown = [f"{name}={value}" for name, value in graph.parameters[:SHOWN_VALUES]]
    return ", ".join([*shown, *["…"] * (len(graph.parameters) > SHOWN_VALUES)])


def counted(count: int, what: str) -> str:
    """Such as `2 loops`."""
    return f"{count:,} {what}{'s' * (count != 1)}"
