"""What must hold of any graph, wherever it comes from: a list of rules.

A rule is a function from a graph and the known node types to what is wrong. Rules about the
meaning of RL, of weights, staleness and sizes, are passes of the compiler and checks of nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import networkx as nx

from rlinf_graph.ir.batch import Carried, Source
from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors, suggest
from rlinf_graph.ir.graph import Graph, Input, Node
from rlinf_graph.ir.node_type import NodeType, Port, Role
from rlinf_graph.ir.span import Span

Types = Mapping[str, NodeType]
Rule = Callable[[Graph, Types], Iterator[Diagnostic]]


def verify(graph: Graph, types: Types) -> Graph:
    """Return `graph` when every rule holds.

    Raises:
        CompileError: with everything that is wrong, in the order of the rules.
    """
    found = [d for rule in STRUCTURE for d in rule(graph, types)]
    raise_errors(found)
    found += [d for rule in TYPING for d in rule(graph, types)]
    raise_errors(found)
    return graph


def names_are_unique(graph: Graph, _types: Types) -> Iterator[Diagnostic]:
    """No two nodes, and no two models, share a name."""
    for name, count in Counter(node.name for node in graph.nodes).items():
        if count > 1:
            yield Diagnostic("RG0202", f"{count} nodes are named `{name}`", graph.node(name).span)
    for name, count in Counter(model.name for model in graph.models).items():
        if count > 1:
            spans = [m.span for m in graph.models if m.name == name]
            yield Diagnostic(
                "RG0106",
                f"{count} models are named `{name}`",
                spans[-1],
                notes=(f"the first stands at {spans[0]}",),
                help=('give one of them a name: rl.Model(..., name="...")',),
            )


def types_are_known(graph: Graph, types: Types) -> Iterator[Diagnostic]:
    """Every node's type is registered."""
    for node in graph.nodes:
        if node.type not in types:
            yield Diagnostic(
                "RG0501",
                f"unknown node type `{node.type}`",
                node.span,
                label=f"node `{node.name}`" if node.span else "",
                notes=() if node.span else (f"it is the type of node `{node.name}`",),
                help=(
                    suggest(node.type, types),
                    "import the module that defines it before the graph is loaded",
                ),
            )


def sources_exist(graph: Graph, _types: Types) -> Iterator[Diagnostic]:
    """Every edge starts at an output of a node of this graph."""
    for node in graph.nodes:
        for edge in node.inputs:
            made = produced(graph, edge.source)
            if made is None or not in_scope(graph, node, edge.source):
                yield Diagnostic(
                    "RG0202",
                    f"`{edge.param}` of `{node.name}` comes from `{edge.source}`, "
                    "which is not in the graph",
                    node.span,
                )
        for use in node.models:
            if use.model not in {m.name for m in graph.models}:
                yield Diagnostic(
                    "RG0202", f"`{node.name}` uses model `{use.model}`, not in the graph", node.span
                )


def flow_has_no_cycle(graph: Graph, _types: Types) -> Iterator[Diagnostic]:
    """Inside an iteration nothing waits for itself; only feedback closes a cycle."""
    if any(node.region and node.region not in graph.by_name for node in graph.nodes):
        return
    if not nx.is_directed_acyclic_graph(graph.flow):
        find_cycle = cast("Callable[..., list[tuple[str, str]]]", cast("Any", nx).find_cycle)
        cycle = [start for start, _ in find_cycle(graph.flow)]
        yield Diagnostic(
            "RG0203",
            f"these nodes wait for each other: {' → '.join([*cycle, cycle[0]])}",
            graph.node(cycle[0]).span,
            help=("close the cycle with rl.sync",),
        )


def inputs_are_given(graph: Graph, types: Types) -> Iterator[Diagnostic]:
    """Every parameter that needs a batch has one, and no edge arrives at a parameter unknown."""
    for node in graph.nodes:
        kind = types[node.type]
        for spec in kind.inputs:
            if node.input(spec.name) is None and not spec.optional:
                yield Diagnostic(
                    "RG0102",
                    f"`{node.name}` needs {_either(spec.types)} for `{spec.name}`",
                    node.span,
                    label=f"`{spec.name}` is missing",
                    help=_makers(types, spec.types),
                )
        for edge in node.inputs:
            if kind.input(edge.param) is None:
                message = f"`{node.name}` has no parameter `{edge.param}`"
                yield Diagnostic("RG0202", message, node.span)


def edges_carry_what_is_taken(graph: Graph, types: Types) -> Iterator[Diagnostic]:
    """The batch type on an edge is one that the parameter takes."""
    for node in graph.nodes:
        for edge in node.inputs:
            spec = types[node.type].input(edge.param)
            kinds = Carried.types[edge.type].kinds() if edge.type in Carried.types else (edge.type,)
            if spec is not None and spec.types and not {*kinds} & {*spec.types}:
                yield _wrong_type(graph, types, node, edge, spec.types)


def heads_fit(graph: Graph, types: Types) -> Iterator[Diagnostic]:
    """A node reads a model with a head it can work with, through a port it may use."""
    for node in graph.nodes:
        specs = {spec.name: spec for spec in types[node.type].models}
        for use in node.models:
            model, spec = graph.model(use.model), specs[use.param]
            if spec.heads and model.head not in spec.heads:
                yield Diagnostic(
                    "RG0105",
                    f"`{node.name}` needs a model with head {_either(spec.heads)}, "
                    f"`{model.name}` has head {model.head}",
                    _at(types, node, use.param),
                    label=f"has head {model.head}",
                    notes=(f"`{model.name}` is declared at {model.span}",) if model.span else (),
                    help=(f'{model.name} = rl.Model("{model.path}", head="{spec.heads[0]}")',),
                )
            if use.port is Port.FROZEN and not node_reads(node):
                yield Diagnostic(
                    "RG0105",
                    f"`{node.name}` changes a model, and a frozen one cannot be changed",
                    _at(types, node, use.param),
                    label="frozen: keeps its first weights",
                    help=(f"{model.name}, without .frozen()",),
                )


def regions_are_loops(graph: Graph, _types: Types) -> Iterator[Diagnostic]:
    """A region says what it carries and what leaves it, all of it made by its body."""
    for node in graph.nodes:
        if node.region and getattr(graph.by_name.get(node.region), "loop", None) is None:
            message = f"`{node.name}` is in `{node.region}`, which is no loop of the graph"
            yield Diagnostic("RG0206", message, node.span)
        if (node.role is Role.REGION) is not (node.loop is not None):
            yield Diagnostic("RG0206", f"`{node.name}` is no complete loop", node.span)
        if node.loop is None:
            continue
        start = node.input("start")
        sources = (node.loop.carried, *node.loop.emitted)
        made = tuple(produced(graph, s) for s in sources if _made_in(graph, node, s))
        if made != node.outputs or start is None or start.type != made[0]:
            message = f"what `{node.name}` carries and lets out does not fit its body"
            yield Diagnostic("RG0206", message, node.span)


def _made_in(graph: Graph, region: Node, source: Source) -> bool:
    made = graph.by_name.get(source.node)
    return made is not None and made.region == region.name


def states_are_carried(graph: Graph, _types: Types) -> Iterator[Diagnostic]:
    """A state gets a value for the next iteration; nothing else lags."""
    for node in graph.nodes:
        lags = tuple(edge.lag for edge in node.inputs)
        if node.role is Role.STATE and lags != (0, 1):
            yield Diagnostic(
                "RG0207",
                f"`{node.name}` is never carried into: it would keep its first value",
                node.span,
                help=("rl.carry(value, into=state)", "without rl.state, use the batch itself"),
            )
        elif node.role is not Role.STATE and any(lags):
            yield Diagnostic("RG0207", f"`{node.name}` is no state", node.span)
        elif node.role is Role.STATE and {edge.type for edge in node.inputs} != {*node.outputs}:
            yield Diagnostic("RG0207", f"`{node.name}` holds values of two types", node.span)


STRUCTURE: tuple[Rule, ...] = (
    names_are_unique,
    types_are_known,
    sources_exist,
    regions_are_loops,
    states_are_carried,
    flow_has_no_cycle,
)
TYPING: tuple[Rule, ...] = (inputs_are_given, edges_carry_what_is_taken, heads_fit)


def node_reads(node: Node) -> bool:
    """Whether the node only reads its models."""
    return node.role.value not in {"train", "sync"}


def produced(graph: Graph, source: Source) -> str | None:
    """The type name of what `source` carries; None when there is no such output or field.

    Of a region that is output 0 inside and outside of it: the value carried, and the last one.
    """
    node = graph.by_name.get(source.node)
    if node is None or source.output >= len(node.outputs):
        return None
    kind = node.outputs[source.output]
    for name in source.field:
        carried = Carried.types[kind].field_types().get(name)
        if carried is None:
            return None
        kind = carried.__name__
    return kind


def in_scope(graph: Graph, node: Node, source: Source) -> bool:
    """Whether a batch can come to a node: it is made in a loop around it, or outside of any."""
    around = graph.regions_of(node.name)
    return source.node in around or graph.node(source.node).region in ("", *around)


def _wrong_type(
    graph: Graph, types: Types, node: Node, edge: Input, taken: tuple[str, ...]
) -> Diagnostic:
    producer = graph.node(edge.source.node)
    where = f" ({producer.span})" if producer.span else ""
    return Diagnostic(
        "RG0101",
        f"`{node.name}` takes {_either(taken)} for `{edge.param}`, not {edge.type}",
        _at(types, node, edge.param),
        label=f"this is {edge.type}",
        notes=(f"the {edge.type} comes from `{edge.source}`{where}",),
        help=_makers(types, taken),
    )


def _makers(types: Types, taken: tuple[str, ...]) -> tuple[str, ...]:
    """The node types that return one of these batch types."""
    makers = sorted(t.name for t in types.values() if set(t.outputs) & set(taken))
    return (f"{_either(taken)} comes from {_either(tuple(makers))}",) if makers else ()


def _at(types: Types, node: Node, param: str) -> Span | None:
    """What a call gives for a parameter."""
    return node.span and node.span.argument(param, types[node.type].parameters)


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
