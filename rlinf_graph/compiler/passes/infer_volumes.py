"""How much every edge carries, and what every node asks of the hardware."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from rlinf_graph.dsl.node import Call, definitions
from rlinf_graph.ir.batch import Carried, Granularity
from rlinf_graph.ir.flow import in_order
from rlinf_graph.ir.graph import Graph, Loop, Node
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.work import Lengths, Volume


def infer_volumes(graph: Graph) -> Graph:
    """Set `volume`, `work` and `steps` of every node, along the flow.

    Inside a loop volume and work are those of one step.
    """
    known: dict[str, Node] = {}
    for node in in_order(graph):
        known[node.name] = _inferred(graph, node, known)
    return graph.with_nodes(tuple(known[node.name] for node in graph.nodes))


def _inferred(graph: Graph, node: Node, known: dict[str, Node]) -> Node:
    if node.loop is not None:
        return replace(node, volume=_of_region(node.outputs, node.loop, known))
    definition = definitions[node.type]
    volumes = {
        i.param: known[entry.node].volume[entry.output]
        for i in reversed(node.inputs)
        if i.type != "Weights" and not i.lag
        for entry in [graph.entry_of(node, i.source)]
    }
    volumes = {i.param: volumes[i.param] for i in node.inputs if i.param in volumes}
    envs = {param: graph.env(name) for param, name in node.envs}
    call = Call(volumes, dict(node.options), envs)
    made = definition.volume(call) if definition.volume else _like_first(node, volumes)
    work = definition.work(call) if definition.work and (volumes or not node.inputs) else None
    steps = prod(_loop(graph, region).expected for region in graph.regions_of(node.name))
    return replace(node, volume=made, work=work, steps=float(steps))


def _loop(graph: Graph, region: str) -> Loop:
    loop = graph.node(region).loop
    if loop is None:
        raise ValueError(f"`{region}` is no verified region")
    return loop


def _of_region(outputs: tuple[str, ...], loop: Loop, known: dict[str, Node]) -> tuple[Volume, ...]:
    """The last value; of what left in every step, longer samples."""
    sources = (loop.carried, *loop.emitted)
    made = [known[source.node].volume[source.output] for source in sources]
    return tuple(
        _joined(volume, loop) if place and _runs_along_steps(kind) else _last(volume, loop, place)
        for place, (volume, kind) in enumerate(zip(made, outputs, strict=True))
    )


def _last(volume: Volume, loop: Loop, place: int) -> Volume:
    """A value that grows by a turn in each step, as dialogs do; others stay as they are."""
    prompt = volume.prompt_tokens
    if place or not prompt or not loop.until:
        return volume
    grown = tuple(prompt + (q - prompt) * loop.expected for q in volume.lengths.quantiles)
    return replace(volume, lengths=Lengths(grown, volume.lengths.origin))


def _runs_along_steps(kind: str) -> bool:
    return Carried.types[kind].granularity is Granularity.STEP


def _joined(volume: Volume, loop: Loop) -> Volume:
    longer = tuple(q * loop.expected for q in volume.lengths.quantiles)
    return replace(volume, lengths=Lengths(longer, volume.lengths.origin))


def _like_first(node: Node, volumes: dict[str, Volume]) -> tuple[Volume, ...]:
    """A node that says nothing else hands on as much as it takes."""
    if node.role is Role.TRAIN:
        return ()
    first = next(iter(volumes.values()), None)
    return (first,) * len(node.outputs) if first is not None else ()
