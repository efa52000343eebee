"""Which engines a plan may name, and how each of them can spread a model over devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlinf_graph.dsl.model import SMALL
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.operations import Operations
from rlinf_graph.ir.work import Generate
from rlinf_graph.nodes.capabilities import Capabilities, Support, architecture_of
from rlinf_graph.nodes.installed import Installed
from rlinf_graph.nodes.registry import capabilities_of, engine_names


@dataclass(frozen=True)
class Able:
    """What a plan may ask of an engine on one kind of device.

    Attributes:
        name: of the engine.
        support: what it can do there.
    """

    name: str
    support: Support

    @property
    def axes(self) -> tuple[str, ...]:
        """Over which it can spread a model."""
        return self.support.axes


_OWN_CODE = Able("torch", Support(axes=("dp",)))
"""A module of the user's: the node's own function runs it, once on each device."""


def engines_of(
    graph: Graph, node: Node, kind: str, allowed: Installed | None, pinned: str | None = None
) -> list[Able]:
    """The engines that can do a node's work on a kind of device; torch comes last.

    Args:
        graph: of the node.
        node: a device node.
        kind: `gpu` or `cpu`.
        allowed: plan with engines that are installed only; None where any may be planned with.
        pinned: the engine that a pin names.
    """
    if isinstance(node.work, Operations):
        return [_OWN_CODE] if allowed is None or allowed.has("torch", kind) else []
    model = next((m for m in graph.models if m.name == node.model), None)
    if model is None:
        return []
    named = pinned or chosen_engine(graph, node)
    small = model.path.startswith(SMALL)
    found: list[Able] = []
    for name in sorted(engine_names(), key=lambda name: (name == "torch", name)):
        does, support = capabilities_of(name), capabilities_of(name).kinds.get(kind)
        if support is None or not _fits(does, node, model.head) or (small and not does.small):
            continue
        wanted = name == named if named else support.unasked
        if wanted and (allowed is None or _there(allowed, name, kind, model.path)):
            axes = support.axes + (support.planned if allowed is None else ())
            found.append(Able(name, replace(support, axes=axes)))
    return found


def why_engine(
    graph: Graph, node: Node, kind: str, allowed: Installed | None, pinned: str | None
) -> str:
    """Why a plan has the engine that it has for a node; empty where there is no other."""
    if pinned:
        return "pinned"
    if chosen_engine(graph, node):
        return "named"
    names = sorted(able.name for able in engines_of(graph, node, kind, allowed))
    return f"best of {', '.join(names)}" if len(names) > 1 else ""


def chosen_engine(graph: Graph, node: Node) -> str:
    """The engine that the user names for a node's model; empty where the compiler chooses.

    Passes without gradients are not meant: any engine that knows the model may make them.
    """
    generates = isinstance(node.work, Generate)
    if not generates and node.role is not Role.TRAIN:
        return ""
    engines = dict(graph.model(node.model or "").engines)
    return engines.get("train" if node.role is Role.TRAIN else "rollout", "")


def _there(allowed: Installed, name: str, kind: str, path: str) -> bool:
    """Whether an engine can run a model now."""
    family, known = architecture_of(path), capabilities_of(name).architectures
    return allowed.has(name, kind) and not (family and known and family not in known)


def _fits(does: Capabilities, node: Node, head: str) -> bool:
    task = "generate" if isinstance(node.work, Generate) else "forward"
    return ("train" if node.role is Role.TRAIN else task) in does.tasks and head in does.heads
