"""What must hold of a plan before it is lowered, whoever wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import networkx as nx

from rlinf_graph.compiler.lower import chunks_of, is_host, takes_midway, works
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors, suggest
from rlinf_graph.ir.flow import find_cycle
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.graph_file import digest
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.plan import (
    Plan,
    SyncPlan,
    Turn,
    devices_of,
    inner_parts,
    leaves_of,
    show_devices,
)
from rlinf_graph.nodes.registry import capabilities_of, engine_names

Rule = Callable[[Graph, Plan, Cluster], Iterator[Diagnostic]]


def check_plan(graph: Graph, plan: Plan, cluster: Cluster) -> Plan:
    """Return the plan when it can be lowered for this graph and cluster.

    Raises:
        CompileError: with everything that is wrong.
    """
    found = [d for rule in BELONGING for d in rule(graph, plan, cluster)]
    raise_errors(found)
    found += [d for rule in FITTING for d in rule(graph, plan, cluster)]
    raise_errors(found)
    return plan


def made_for_this_graph(graph: Graph, plan: Plan, _cluster: Cluster) -> Iterator[Diagnostic]:
    """The graph has not changed since the plan was made."""
    if plan.graph and plan.graph != digest(graph):
        yield Diagnostic(
            "RG0602",
            f"the plan was made for another version of `{graph.name}`",
            graph.span,
            notes=(f"the plan names graph {plan.graph}, this one is {digest(graph)}",),
            help=("compile again, or empty the plan's `graph` to run it all the same",),
        )


def every_node_has_a_place(graph: Graph, plan: Plan, _cluster: Cluster) -> Iterator[Diagnostic]:
    """Each device node stands once in the placement, and nothing else does."""
    placed = Counter(leaf.node for leaf in plan.leaves())
    for node in device_nodes(graph):
        if placed[node.name] != 1:
            count = "no place" if not placed[node.name] else f"{placed[node.name]} places"
            yield Diagnostic("RG0602", f"`{node.name}` has {count} in the plan", node.span)
    names = {node.name for node in device_nodes(graph)}
    for name in [*placed, *plan.nodes]:
        if name not in names:
            yield Diagnostic(
                "RG0602", f"the plan places `{name}`, which is no device node of `{graph.name}`",
                help=(suggest(name, names),),
            )  # fmt: skip


def devices_exist(graph: Graph, plan: Plan, cluster: Cluster) -> Iterator[Diagnostic]:
    """No node is on a device that the cluster does not have."""
    for leaf in plan.leaves():
        if not leaf.devices or max(leaf.devices) >= cluster.size:
            yield Diagnostic(
                "RG0402",
                f"`{leaf.node}` is on devices {show_devices(leaf.devices) or 'none'}, "
                f"{cluster.name} has {cluster.size} (0-{cluster.size - 1})",
                graph.node(leaf.node).span,
            )


def parts_are_disjoint(graph: Graph, plan: Plan, _cluster: Cluster) -> Iterator[Diagnostic]:
    """What runs side by side shares no device."""
    for part in inner_parts(plan.placement):
        if isinstance(part, Turn):
            continue
        seen: dict[int, str] = {}
        for branch in part.parts:
            names = ", ".join(leaf.node for leaf in leaves_of(branch))
            for device in devices_of(branch):
                if device in seen:
                    message = f"device {device} is given to `{seen[device]}` and `{names}` at once"
                    yield Diagnostic("RG0602", message, graph.span)
                seen[device] = names


def layouts_fill_their_devices(graph: Graph, plan: Plan, cluster: Cluster) -> Iterator[Diagnostic]:
    """Degrees multiply to the number of devices, and tensor parallelism stays in a machine."""
    for leaf in plan.leaves():
        parallel, span = plan.settings(leaf.node).parallel, graph.node(leaf.node).span
        if parallel.devices != len(leaf.devices):
            yield Diagnostic(
                "RG0602",
                f"`{leaf.node}` is laid out for {parallel.devices} devices "
                f"and has {len(leaf.devices)} ({show_devices(leaf.devices)})",
                span,
            )
            continue
        for start in range(0, len(leaf.devices), parallel.tp):
            block = leaf.devices[start : start + parallel.tp]
            if len(set(cluster.domains_of(block).tolist())) > 1:
                message = f"tp {parallel.tp} of `{leaf.node}` straddles machines"
                note = f"devices {show_devices(block)} are in different machines"
                yield Diagnostic("RG0406", message, span, notes=(note,))


def sizes_divide(graph: Graph, plan: Plan, _cluster: Cluster) -> Iterator[Diagnostic]:
    """Every rank of every micro-batch gets the same number of samples, groups whole."""
    for node in device_nodes(graph):
        settings = plan.settings(node.name)
        if not node.inputs:
            continue
        ranks, edge = settings.parallel.dp, node.inputs[0]
        volume = graph.volume(node, edge.source)
        if node.role is Role.TRAIN:
            size = node.option("minibatch") or volume.samples
            parts, what = ranks * (settings.micro_batch or 1), f"minibatch of {size} samples"
            cut = f"dp {ranks} × micro-batch {settings.micro_batch or 1}"
        else:
            chunks = chunks_of(graph, plan, node)
            size, parts = volume.samples // volume.group, ranks * chunks
            what = f"{size} {'groups' if volume.group > 1 else 'samples'}"
            cut = f"{chunks} chunks × dp {ranks}"
        if node.role is Role.EVALUATE and size >= parts:
            continue  # its shares may differ by one sample
        if size % parts:
            message = f"{cut} of `{node.name}` do not divide its {what}"
            yield Diagnostic("RG0403", message, node.span)


def turns_follow_the_flow(graph: Graph, plan: Plan, _cluster: Cluster) -> Iterator[Diagnostic]:
    """Nobody waits, inside an iteration, for a node whose turn comes later."""
    order: nx.DiGraph[str] = graph.flow.copy()
    for part in inner_parts(plan.placement):
        if isinstance(part, Turn):
            for before, after in zip(part.parts, part.parts[1:], strict=False):
                order.add_edges_from(
                    (a.node, b.node) for a in leaves_of(before) for b in leaves_of(after)
                )
    if cycle := find_cycle(order):
        yield Diagnostic(
            "RG0602",
            f"the turns of the plan wait for each other: {' → '.join([*cycle, cycle[0]])}",
            graph.node(cycle[0]).span,
            help=("order the parts of the turn as the data flows",),
        )


def staleness_is_allowed(graph: Graph, plan: Plan, _cluster: Cluster) -> Iterator[Diagnostic]:
    """The plan's staleness is at most the pipeline's bound."""
    for node in graph.with_role(Role.SYNC):
        sync = plan.syncs.get(node.name, SyncPlan())
        if node.models[0].served:
            if sync.staleness:
                message = f"the plan delivers late to the named port of `{node.name}`"
                yield Diagnostic("RG0302", message, node.span, help=("staleness 0 there",))
            continue
        total, bound = sync.staleness + node.option("every") - 1, node.option("max_staleness")
        if total > bound:
            yield Diagnostic(
                "RG0302",
                f"the plan lets samples of `{node.model}` be {total} iterations old, "
                f"{bound} allowed",
                node.span,
            )


def interruptions_can_happen(graph: Graph, plan: Plan, _cluster: Cluster) -> Iterator[Diagnostic]:
    """Where a plan interrupts there is something to interrupt, newer weights can come meanwhile,
    and the engine can go on."""
    for node in graph.with_role(Role.SYNC):
        sync, use = plan.syncs.get(node.name, SyncPlan()), node.models[0]
        if not sync.interrupt:
            continue
        readers = [n for n in graph.readers(use.model, use.served) if takes_midway(n)]
        if not sync.staleness:
            message = f"the plan interrupts for `{node.name}` at staleness 0: no newer weights come"
            yield Diagnostic("RG0307", message, node.span,
                             help=("staleness 1 or more there, or interrupt false",))  # fmt: skip
        if not readers:
            message = f"nothing that `{node.name}` delivers to can be interrupted"
            note = "rl.rollout can, outside of loops; evaluations and dialogs keep one version"
            yield Diagnostic("RG0307", message, node.at("interrupt"), notes=(note,))
        for reader in readers:
            yield from _cannot_go_on(plan, reader, node)


def _cannot_go_on(plan: Plan, reader: Node, sync: Node) -> Iterator[Diagnostic]:
    engine = plan.settings(reader.name).engine
    asked = (f"`{sync.name}` at {sync.at('interrupt')} asks for it",)
    if not capabilities_of(engine).interrupts:
        able = [name for name in engine_names() if capabilities_of(name).interrupts]
        message = f"`{reader.name}` cannot be interrupted: `{engine}` does not go on with responses"
        yield Diagnostic("RG0307", message, reader.span, notes=asked,
                         help=(f"an engine that does: {', '.join(able)}",))  # fmt: skip
    if dict(reader.options).get("keep") is not None:
        message = f"`{reader.name}` cannot be interrupted: it returns those that finish first"
        yield Diagnostic("RG0307", message, reader.at("keep"), notes=asked,
                         help=("leave out `keep`", "interrupt=False in rl.sync"))  # fmt: skip


def micro_batch_turns_match(graph: Graph, plan: Plan, _cluster: Cluster) -> Iterator[Diagnostic]:
    """Nodes that take turns once a micro-batch have the same number of them."""
    for part in inner_parts(plan.placement):
        if isinstance(part, Turn) and part.per == "micro_batch":
            counts = {leaf.node: _rounds(graph, plan, leaf.node) for leaf in leaves_of(part)}
            if len(set(counts.values())) > 1:
                shown = ", ".join(f"`{name}` {count}" for name, count in counts.items())
                message = "nodes that take turns once a micro-batch differ in their number"
                yield Diagnostic("RG0602", message, graph.span, notes=(shown,))


def regions_are_subtrees(graph: Graph, plan: Plan, _cluster: Cluster) -> Iterator[Diagnostic]:
    """The device nodes of a region stand together, and take turns only within its steps."""
    for region in graph.with_role(Role.REGION):
        inside = {n.name for n in graph.nodes if region.name in graph.regions_of(n.name)}
        for part in inner_parts(plan.placement):
            below = [{leaf.node for leaf in leaves_of(branch)} for branch in part.parts]
            mine = [names for names in below if names & inside]
            if len(mine) < 2:
                continue
            strangers = sorted(set[str]().union(*below) - inside)
            if strangers:
                message = (
                    f"`{strangers[0]}` stands between the nodes of `{region.name}` in the plan"
                )
                yield Diagnostic("RG0602", message, region.span)
            elif isinstance(part, Turn) and part.per == "iteration":
                yield Diagnostic(
                    "RG0602",
                    f"the nodes of `{region.name}` wait for each other in every step, and take "
                    "turns once an iteration",
                    region.span,
                    help=('"per": "micro_batch" in that turn of the plan',),
                )


BELONGING: tuple[Rule, ...] = (made_for_this_graph, every_node_has_a_place, devices_exist)
FITTING: tuple[Rule, ...] = (
    parts_are_disjoint,
    layouts_fill_their_devices,
    sizes_divide,
    turns_follow_the_flow,
    staleness_is_allowed,
    interruptions_can_happen,
    micro_batch_turns_match,
    regions_are_subtrees,
)


def device_nodes(graph: Graph) -> list[Node]:
    """The nodes that a plan places."""
    return [n for n in graph.nodes if works(n) and not is_host(n)]


def _rounds(graph: Graph, plan: Plan, name: str) -> int:
    node = graph.node(name)
    if node.role is not Role.TRAIN:
        return chunks_of(graph, plan, node)
    samples = graph.volume(node, node.inputs[0].source).samples
    return samples // (node.option("minibatch") or samples) * node.option("epochs")
