"""The logical form of one iteration: nodes with typed inputs, models, and nothing placed yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import networkx as nx

from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.span import Span
from rlinf_graph.ir.value import Value, from_json, to_json
from rlinf_graph.ir.work import Volume, Work

FORMAT = 1


@dataclass(frozen=True)
class Input:
    """An edge's end at its consumer: the parameter, where the batch comes from, and its type."""

    param: str
    source: Source
    type: str


@dataclass(frozen=True)
class ModelUse:
    """A node's use of a model through one of its ports."""

    param: str
    model: str
    port: Port


@dataclass(frozen=True)
class ModelDef:
    """A versioned register of weights.

    `path` is a hub name, or a folder with a `config.json`; `weights` is `pretrained` or `random`;
    `engines` are the user's choices by role (`rollout`, `train`), empty where the compiler chooses.
    """

    name: str
    path: str
    head: str = "lm"
    dtype: str = "auto"
    weights: str = "pretrained"
    engines: tuple[tuple[str, str], ...] = ()
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Node:
    """One call of a node type in the pipeline.

    Attributes:
        name: unique in the graph, as explain prints it, such as `rollout policy`.
        type: the node type's name.
        role: the node type's role.
        unit: the smallest part of the batch it can work on, given its options.
        options: in the order of the signature, defaults included.
        outputs: batch type names.
        volume: what each output carries in an iteration; set by the pass `infer_volumes`.
        work: what it asks of the hardware; set by `infer_volumes`.
    """

    name: str
    type: str
    role: Role
    unit: Unit
    inputs: tuple[Input, ...] = ()
    models: tuple[ModelUse, ...] = ()
    options: tuple[tuple[str, Value], ...] = ()
    outputs: tuple[str, ...] = ()
    span: Span | None = field(default=None, compare=False)
    volume: tuple[Volume, ...] = field(default=(), compare=False)
    work: Work | None = field(default=None, compare=False)

    def at(self, param: str) -> Span | None:
        """Where the value of an option given by keyword stands; else the whole call."""
        return self.span and self.span.argument(param)

    def option(self, name: str) -> Value:
        """The value of option `name`; None when the node type has no such option."""
        return dict(self.options).get(name)

    def input(self, param: str) -> Input | None:
        """The edge that arrives at `param`, if one does."""
        return next((i for i in self.inputs if i.param == param), None)

    @property
    def model(self) -> str | None:
        """The model this node works with; the first when it takes several."""
        return self.models[0].model if self.models else None


@dataclass(frozen=True)
class Edge:
    """A batch on its way from a node to a parameter of another."""

    source: Source
    target: str
    param: str
    type: str

    @property
    def name(self) -> str:
        """Unique in the graph."""
        return f"{self.source} -> {self.target}.{self.param}"


@dataclass(frozen=True)
class Graph:
    """One iteration of a pipeline. Nodes stand in the order in which they were declared.

    Attributes:
        name: the pipeline's name.
        file: the file that declares it.
        parameters: the pipeline's parameters with the values this graph was built with.
        pins: node name (or prefix of it) to device ids, from the pipeline's declaration.
    """

    name: str
    nodes: tuple[Node, ...]
    models: tuple[ModelDef, ...] = ()
    file: str = field(default="", compare=False)
    parameters: tuple[tuple[str, Value], ...] = ()
    pins: tuple[tuple[str, str], ...] = ()
    span: Span | None = field(default=None, compare=False)

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    def node(self, name: str) -> Node:
        """The node `name`; KeyError when there is none."""
        return self.by_name[name]

    def model(self, name: str) -> ModelDef:
        """The model `name`; KeyError when there is none."""
        return {m.name: m for m in self.models}[name]

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, by consumer."""
        return tuple(Edge(i.source, n.name, i.param, i.type) for n in self.nodes for i in n.inputs)

    def into(self, name: str) -> list[Edge]:
        """The edges that arrive at a node."""
        return [e for e in self.edges if e.target == name]

    def out_of(self, name: str) -> list[Edge]:
        """The edges that leave a node."""
        return [e for e in self.edges if e.source.node == name]

    @cached_property
    def flow(self) -> nx.DiGraph[str]:
        """Node names and the dependencies inside one iteration; feedback is not in it."""
        flow: nx.DiGraph[str] = nx.DiGraph()
        flow.add_nodes_from(node.name for node in self.nodes)
        flow.add_edges_from((e.source.node, e.target) for e in self.edges)
        return flow

    def with_role(self, role: Role) -> Iterator[Node]:
        """The nodes of a role, as declared."""
        return (node for node in self.nodes if node.role is role)

    def syncs(self) -> dict[str, Node]:
        """Model name → the sync node that updates its served port."""
        return {node.models[0].model: node for node in self.with_role(Role.SYNC) if node.models}

    def trainers(self) -> dict[str, Node]:
        """Model name → the node that trains it."""
        return {node.models[0].model: node for node in self.with_role(Role.TRAIN) if node.models}

    def with_nodes(self, nodes: tuple[Node, ...]) -> Graph:
        """The same graph with other nodes."""
        return replace(self, nodes=nodes)

    @cached_property
    def digest(self) -> str:
        """A hash of what the graph means: independent of line numbers and of where it lies."""
        meaning = json.dumps(_without_files(_meaning(self)), sort_keys=True)
        return hashlib.sha256(meaning.encode()).hexdigest()[:16]


def dumps(graph: Graph) -> str:
    """The graph as JSON text."""
    data = _meaning(graph) | {"format": FORMAT, "file": graph.file}
    return json.dumps(data, indent=1)


def loads(text: str) -> Graph:
    """The graph that `dumps` wrote; its types are not verified yet.

    Raises:
        CompileError: RG0201, for text that is no saved graph.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, this version reads {FORMAT}")
        return _read(data)
    except (KeyError, TypeError, ValueError) as error:
        raise fail("RG0201", f"this is not a saved graph: {error}") from error


def _meaning(graph: Graph) -> dict[str, Any]:
    return {
        "name": graph.name,
        "parameters": {k: to_json(v) for k, v in graph.parameters},
        "pins": dict(graph.pins),
        "models": [
            {"name": m.name, "path": m.path, "head": m.head, "dtype": m.dtype}
            | {"weights": m.weights, "engines": dict(m.engines)}
            for m in graph.models
        ],
        "nodes": [_node_meaning(node) for node in graph.nodes],
    }


def _without_files(data: Any) -> Any:
    """A function counts by its name and source, not by where its file lies."""
    if isinstance(data, list):
        return [_without_files(item) for item in cast("list[Any]", data)]
    if isinstance(data, dict):
        fields = cast("dict[str, Any]", data)
        dropped = {"file"} if "$function" in fields else set[str]()
        return {k: _without_files(v) for k, v in fields.items() if k not in dropped}
    return data


def _node_meaning(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "type": node.type,
        "role": node.role.value,
        "unit": node.unit.value,
        "inputs": [
            {
                "param": i.param,
                "node": i.source.node,
                "output": i.source.output,
                "field": list(i.source.field),
                "type": i.type,
            }
            for i in node.inputs
        ],
        "models": [[u.param, u.model, u.port.value] for u in node.models],
        "options": {k: to_json(v) for k, v in node.options},
        "outputs": list(node.outputs),
    }


def _read(data: dict[str, Any]) -> Graph:
    return Graph(
        name=data["name"],
        nodes=tuple(_read_node(n) for n in data["nodes"]),
        models=tuple(
            ModelDef(**(m | {"engines": tuple(m["engines"].items())})) for m in data["models"]
        ),
        file=data["file"],
        parameters=tuple((k, from_json(v)) for k, v in data["parameters"].items()),
        pins=tuple(data["pins"].items()),
    )


def _read_node(data: dict[str, Any]) -> Node:
    return Node(
        name=data["name"],
        type=data["type"],
        role=Role(data["role"]),
        unit=Unit(data["unit"]),
        inputs=tuple(
            Input(i["param"], Source(i["node"], i["output"], tuple(i["field"])), i["type"])
            for i in data["inputs"]
        ),
        models=tuple(ModelUse(p, m, Port(port)) for p, m, port in data["models"]),
        options=tuple((k, from_json(v)) for k, v in data["options"].items()),
        outputs=tuple(data["outputs"]),
    )
