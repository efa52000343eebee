"""The logical form of one iteration: nodes with typed inputs, models, and nothing placed yet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import networkx as nx

from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.span import Span
from rlinf_graph.ir.value import Value
from rlinf_graph.ir.work import Volume, Work


@dataclass(frozen=True)
class Input:
    """An edge's end at its consumer: the parameter, where the batch comes from, and its type.

    `lag` 1 takes what the iteration before made: only `rl.carry` makes such edges.
    """

    param: str
    source: Source
    type: str
    lag: int = 0


@dataclass(frozen=True)
class ModelUse:
    """A node's use of a model through one of its ports.

    Attributes:
        served: which of several served ports; empty for the main one.
        decay: of a sync: what a named port keeps of its own weights at each delivery.
    """

    param: str
    model: str
    port: Port
    served: str = ""
    decay: float = 0.0

    @property
    def delivered(self) -> tuple[str, str] | None:
        """The model and the served port that is read or written; None for another port."""
        return (self.model, self.served) if self.port is Port.SERVED else None


@dataclass(frozen=True)
class Space:
    """What one observation or one action is: an array, or one of `choices` numbers from 0."""

    shape: tuple[int, ...] = ()
    choices: int = 0
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Numbers of one value."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelDef:
    """A versioned register of weights.

    `path` is a hub name, a folder with a `config.json`, or a small network such as `mlp:64x64`;
    `weights` is `pretrained` or `random`; `engines` are the user's choices by role (`rollout`,
    `train`), empty where the compiler chooses. A small network is made for the observations and
    actions of the environment `env`; the pass `infer_spaces` says what those are.
    """

    name: str
    path: str
    head: str = "lm"
    dtype: str = "auto"
    weights: str = "pretrained"
    engines: tuple[tuple[str, str], ...] = ()
    env: str = ""
    span: Span | None = field(default=None, compare=False)
    observation: Space | None = field(default=None, compare=False)
    action: Space | None = field(default=None, compare=False)


@dataclass(frozen=True)
class EnvDef:
    """A register of environments: `count` copies, which go on where they stand.

    Attributes:
        name: unique in the graph.
        path: what the engine calls it, or a function that makes one.
        count: copies.
        engine: makes and steps them.
        options: keywords for making one.
        normalize: whether observations are shifted and scaled by their running moments.
        observation, action: set by the pass `infer_spaces`.
    """

    name: str
    path: Value
    count: int
    engine: str = "gymnasium"
    options: tuple[tuple[str, Value], ...] = ()
    normalize: bool = False
    span: Span | None = field(default=None, compare=False)
    observation: Space | None = field(default=None, compare=False)
    action: Space | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Loop:
    """What a region node says of the nodes whose `region` it is: they run again and again.

    Inside, a source that names the region is the value carried from step to step, which is the
    region's input `start` in the first. Outside, output 0 is the value after the last step, the
    others are what was emitted, joined over the steps.

    Attributes:
        carried: the batch of the body that becomes the next step's value.
        emitted: batches of the body that leave in every step.
        length: steps, at most.
        until: field of the carried batch that is true for samples which are done; they leave. Empty
            where all samples take all steps.
        expected: steps that a sample takes on average, to plan with.
    """

    carried: Source
    emitted: tuple[Source, ...]
    length: int
    until: str = ""
    expected: float = 0.0


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
        envs: environments by parameter.
        region: the region node in whose body it is; empty outside of any.
        loop: of a region node.
        volume: what each output carries in an iteration, or in one step of the loop that the node
            is in; set by the pass `infer_volumes`.
        work: what it asks of the hardware, in the same; set by `infer_volumes`.
        steps: how often it is expected to run in an iteration; set by `infer_volumes`.
    """

    name: str
    type: str
    role: Role
    unit: Unit
    inputs: tuple[Input, ...] = ()
    models: tuple[ModelUse, ...] = ()
    options: tuple[tuple[str, Value], ...] = ()
    outputs: tuple[str, ...] = ()
    envs: tuple[tuple[str, str], ...] = ()
    region: str = ""
    loop: Loop | None = None
    span: Span | None = field(default=None, compare=False)
    volume: tuple[Volume, ...] = field(default=(), compare=False)
    work: Work | None = field(default=None, compare=False)
    steps: float = field(default=1.0, compare=False)

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
    """A batch on its way from a node to a parameter of another, by way of regions or none."""

    source: Source
    target: str
    param: str
    type: str
    lag: int = 0

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

    Nodes inside of regions stand beside the others, and say which region they are in.
    """

    name: str
    nodes: tuple[Node, ...]
    models: tuple[ModelDef, ...] = ()
    envs: tuple[EnvDef, ...] = ()
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

    def env(self, name: str) -> EnvDef:
        """The environment `name`; KeyError when there is none."""
        return {e.name: e for e in self.envs}[name]

    def body(self, region: str) -> tuple[Node, ...]:
        """The nodes of a region, those of regions inside it excepted."""
        return tuple(node for node in self.nodes if node.region == region)

    def regions_of(self, name: str) -> tuple[str, ...]:
        """The regions around a node, outermost first."""
        found: list[str] = []
        inside = self.by_name[name].region
        while inside and inside not in found:
            found.append(inside)
            inside = self.by_name[inside].region if inside in self.by_name else ""
        return tuple(reversed(found))

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, by consumer."""
        return tuple(
            Edge(i.source, n.name, i.param, i.type, i.lag) for n in self.nodes for i in n.inputs
        )

    def into(self, name: str) -> list[Edge]:
        """The edges that arrive at a node."""
        return [e for e in self.edges if e.target == name]

    def out_of(self, name: str) -> list[Edge]:
        """The edges that leave a node."""
        return [e for e in self.edges if e.source.node == name]

    @cached_property
    def flow(self) -> nx.DiGraph[str]:
        """Node names and the dependencies inside one iteration; feedback is not in it.

        A region stands behind its body. What enters it goes to those of the body that take it.
        """
        flow: nx.DiGraph[str] = nx.DiGraph()
        flow.add_nodes_from(node.name for node in self.nodes)
        flow.add_edges_from((self.entry(e), e.target) for e in self.edges if not e.lag)
        for node in self.nodes:
            for source in (node.loop.carried, *node.loop.emitted) if node.loop else ():
                if source.node != node.name:
                    flow.add_edge(source.node, node.name)
        return flow

    def entry(self, edge: Edge) -> str:
        """The node that an edge comes from in a loop's first step."""
        return self.entry_of(self.by_name[edge.target], edge.source).node

    def volume(self, node: Node, source: Source) -> Volume:
        """How much comes to a node from a source; the pass `infer_volumes` has been there."""
        entry = self.entry_of(node, source)
        return self.by_name[entry.node].volume[entry.output]

    def entry_of(self, node: Node, source: Source) -> Source:
        """What a node takes from a source in the first step of the loops around it."""
        around = self.regions_of(node.name)
        while source.node in around:
            start = self.by_name[source.node].input("start")
            if start is None:
                break
            source = start.source
        return source

    def with_role(self, role: Role) -> Iterator[Node]:
        """The nodes of a role, as declared."""
        return (node for node in self.nodes if node.role is role)

    def syncs(self) -> dict[str, Node]:
        """Model name → the sync node that updates its main served port."""
        return {model: node for (model, served), node in self.deliveries().items() if not served}

    def deliveries(self) -> dict[tuple[str, str], Node]:
        """Model name and name of a served port → the sync node that updates it."""
        syncs = (node for node in self.with_role(Role.SYNC) if node.models)
        return {(use.model, use.served): node for node in syncs for use in node.models[:1]}

    def readers(self, model: str, served: str = "") -> list[Node]:
        """The nodes that read a served port of a model, as declared."""
        return [
            node
            for node in self.nodes
            if node.role is not Role.SYNC
            and any(use.delivered == (model, served) for use in node.models)
        ]

    def trainers(self) -> dict[str, Node]:
        """Model name → the node that trains it."""
        return {node.models[0].model: node for node in self.with_role(Role.TRAIN) if node.models}

    def with_nodes(self, nodes: tuple[Node, ...]) -> Graph:
        """The same graph with other nodes."""
        return replace(self, nodes=nodes)
