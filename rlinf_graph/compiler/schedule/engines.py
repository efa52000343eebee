"""Which engines a plan may name, and how each of them can spread a model over devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlinf_graph.dsl.model import SMALL
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.operations import Operations
from rlinf_graph.ir.work import Generate

Axes = Mapping[str, tuple[str, ...]]
"""Engine → the axes over which it can spread a model."""


@dataclass(frozen=True)
class Able:
    """What a plan may ask of an engine.

    Attributes:
        name: of the engine.
        kinds: of devices it works on.
        samples: whether it generates text.
        passes: whether it makes forward passes and trains.
        small: whether it knows small networks.
        axes: `dp`, `tp`, `pp`, `cp`, `ep`, `fsdp`; `optimizer` where data-parallel ranks always
            share the optimizer's states.
    """

    name: str
    kinds: tuple[str, ...]
    samples: bool
    passes: bool
    small: bool
    axes: tuple[str, ...]


ENGINES = (
    Able("vllm", ("gpu",), True, False, False, ("dp", "tp", "pp", "ep")),
    Able("megatron", ("gpu",), False, True, False, ("dp", "tp", "pp", "cp", "ep", "optimizer")),
    Able("torch", ("gpu", "cpu"), True, True, True, ("dp", "fsdp")),
)

_OWN_CODE = Able("torch", ("gpu", "cpu"), False, True, False, ("dp",))
"""A module of the user's: the node's own function runs it, once on each device."""


def engines_of(graph: Graph, node: Node, kind: str, allowed: Axes | None) -> list[Able]:
    """The engines that can do a node's work on a kind of device.

    Args:
        graph: of the node.
        node: a device node.
        kind: `gpu` or `cpu`.
        allowed: engines that are there, with their axes; None where any may be planned with.
    """
    if isinstance(node.work, Operations):
        return [_OWN_CODE] if allowed is None or "torch" in allowed else []
    model = next((m for m in graph.models if m.name == node.model), None)
    if model is None:
        return []
    generates = isinstance(node.work, Generate)
    chosen = dict(model.engines).get("train" if node.role is Role.TRAIN else "rollout", "")
    small = model.path.startswith(SMALL)
    found: list[Able] = []
    for able in ENGINES:
        given = able.axes if allowed is None else allowed.get(able.name, ())
        axes = tuple(axis for axis in able.axes if axis in given)
        does = (able.samples if generates else able.passes) and (able.small or not small)
        wanted = not chosen or chosen == able.name or not (generates or node.role is Role.TRAIN)
        if kind in able.kinds and does and wanted and axes:
            found.append(replace(able, axes=axes))
    return found
