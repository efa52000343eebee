"""What to change so that a pipeline fits in memory: each change is tried with the cost model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import networkx as nx

from rlinf_graph.compiler.passes.infer_volumes import infer_volumes
from rlinf_graph.compiler.schedule.memory import RESERVED, Shortage
from rlinf_graph.compiler.schedule.pins import Pins
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.work import Generate

FACTORS = (2, 4, 8)
"""By which response limits are divided."""

LARGER = (2, 4, 8, 16, 32, 64)
"""By which the number of machines is multiplied."""


@dataclass(frozen=True)
class Case:
    """A pipeline on a cluster with pins: what a mend changes."""

    graph: Graph
    cluster: Cluster
    pins: Pins


@dataclass(frozen=True)
class Tried:
    """Seconds of an iteration where it fits (None: not worked out), else the bytes missing."""

    fits: bool
    seconds: float | None = None
    over: float = 0.0


Try = Callable[[Case], Tried]


def mends(case: Case, short: Shortage, attempt: Try) -> tuple[str, ...]:
    """Changes with their predicted effect: those that make it fit, else those that help most.

    Args:
        case: what does not fit.
        short: the device that lacks memory in the placement that lacks least.
        attempt: the search with the change applied.
    """
    shown: list[str] = []
    partly: list[str] = []
    for ladder in (
        _shorter_answers(case, short),
        _larger(case),
        _more_memory(case, short),
    ):
        most, helps = 0.05 * short.over, ""
        for text, changed in ladder:
            try:
                tried = attempt(changed)
            except CompileError:
                continue  # a layout that this model does not allow
            if tried.fits:
                shown.append(f"{text}: fits{_per_iteration(tried.seconds)}")
                break
            saved = short.over - tried.over
            if saved > most:
                most, helps = saved, f"{text}: saves {saved / 1e9:.1f} GB (not enough alone)"
        else:
            partly += [helps] if helps else []
    return tuple(shown or partly)


def _per_iteration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f", {seconds:.0f} s per iteration" if seconds >= 100 else f", {seconds:.2g} s per iteration"
    )


def _shorter_answers(case: Case, short: Shortage) -> Iterator[tuple[str, Case]]:
    """A lower token limit of the rollout whose answers the node works on."""
    ancestors = cast("Callable[..., set[str]]", cast("Any", nx).ancestors)
    before = {short.node, *ancestors(case.graph.flow, short.node)}
    for node in case.graph.nodes:
        if node.name in before and isinstance(node.work, Generate):
            limit = node.option("max_tokens")
            for tokens in (limit // factor for factor in FACTORS if limit >= factor):
                changed = _with_option(node, "max_tokens", tokens)
                nodes = tuple(changed if n is node else n for n in case.graph.nodes)
                graph = infer_volumes(case.graph.with_nodes(nodes))
                text = f"max_tokens {limit} → {tokens} in `{node.name}`"
                yield text, replace(case, graph=graph)


def _larger(case: Case) -> Iterator[tuple[str, Case]]:
    """More of the same machines."""
    for factor in LARGER:
        groups = tuple(replace(g, nodes=g.nodes * factor) for g in case.cluster.groups)
        larger = replace(case.cluster, groups=groups)
        yield larger.summary(), replace(case, cluster=larger)


def _more_memory(case: Case, short: Shortage) -> Iterator[tuple[str, Case]]:
    """For processors, whose memory the cluster file states: what it would have to be."""
    group = case.cluster.group_of(short.device)
    if group.device.kind != "cpu":
        return
    gigabytes = math.ceil(short.needed / (1 - RESERVED) / 1e8) / 10
    yield (
        f"memory_gb = {gigabytes:g} of node group `{group.name}`, if the machine has it",
        replace(case, cluster=_with_memory(case.cluster, group, gigabytes * 1e9)),
    )


def _with_memory(cluster: Cluster, group: NodeGroup, size: float) -> Cluster:
    changed = replace(group, device=replace(group.device, memory=size))
    return replace(cluster, groups=tuple(changed if g is group else g for g in cluster.groups))


def _with_option(node: Node, name: str, value: int) -> Node:
    return replace(node, options=tuple((k, value if k == name else v) for k, v in node.options))
