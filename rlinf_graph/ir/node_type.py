"""A node type's contract as data: what the compiler may know of a node without running it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlinf_graph.ir.value import Value


class Unit(StrEnum):
    """The smallest part of a batch that a node can work on by itself."""

    SAMPLE = "sample"
    GROUP = "group"
    BATCH = "batch"


class Role(StrEnum):
    """What a node does to the state of a pipeline; decides how it is lowered."""

    SOURCE = "source"
    COMPUTE = "compute"
    TRAIN = "train"
    SYNC = "sync"
    EVALUATE = "evaluate"
    REGION = "region"
    STATE = "state"


class Place(StrEnum):
    """Where a node works: on the cluster's devices, or on the processors beside them."""

    DEVICE = "device"
    HOST = "host"


class Port(StrEnum):
    """Which weights of a model: those being trained, or those that `sync` last delivered."""

    TRAINED = "trained"
    SERVED = "served"
    FROZEN = "frozen"


@dataclass(frozen=True)
class InputSpec:
    """A parameter that takes a batch of one of the named types; of any, where none is named."""

    name: str
    types: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A parameter that takes a model, the port it reads or writes, and the heads it accepts."""

    name: str
    port: Port
    heads: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptionSpec:
    """A parameter that takes a plain value."""

    name: str
    annotation: str
    default: Value = None
    required: bool = False


@dataclass(frozen=True)
class NodeType:
    """The signature of a node type.

    `parameters` names all of them in the order in which a call gives them, `envs` those that take
    an environment.
    """

    name: str
    inputs: tuple[InputSpec, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    options: tuple[OptionSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    role: Role = Role.COMPUTE
    place: Place = Place.HOST
    doc: str = ""
    parameters: tuple[str, ...] = ()
    envs: tuple[str, ...] = ()

    def input(self, name: str) -> InputSpec | None:
        """The input parameter `name`, if there is one."""
        return next((spec for spec in self.inputs if spec.name == name), None)
