"""`@rl.node`: an ordinary function or class whose signature is its contract in the graph.

Parameters annotated with batch types are edges, with `Model`, `Frozen` or `Served` models, with
`Env` environments, all others are options. Called inside a pipeline a node is recorded; called
anywhere else it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar, cast, dataclass_transform, overload

from rlinf_graph.dsl.builder import current_builder, misuse, user_frame
from rlinf_graph.dsl.env import Env
from rlinf_graph.dsl.guard import guarded
from rlinf_graph.dsl.model import Frozen, Model, Served
from rlinf_graph.ir.batch import Carried
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic, fail, suggest
from rlinf_graph.ir.graph import EnvDef, Graph, Node
from rlinf_graph.ir.node_type import (
    InputSpec,
    ModelSpec,
    NodeType,
    OptionSpec,
    Place,
    Port,
    Role,
    Unit,
)
from rlinf_graph.ir.span import Span
from rlinf_graph.ir.work import Volume, Work

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


@dataclass(frozen=True)
class Call:
    """A node's call at planning time: how much arrives at each input, and the options' values.

    `envs` are the environments, by parameter.
    """

    volumes: Mapping[str, Volume]
    options: Mapping[str, Any]
    envs: Mapping[str, EnvDef] = field(default_factory=dict[str, EnvDef])

    @property
    def first(self) -> Volume:
        """The volume of the first input."""
        return next(iter(self.volumes.values()))


Check = Callable[[Node, Graph], Iterator[Diagnostic]]


@dataclass(frozen=True)
class NodeDefinition:
    """A node type together with the functions that give it meaning.

    Attributes:
        type: the contract as data.
        label: what explain prints.
        kernel: runs the node on values: inputs, models and options by name.
        unit: the smallest part of a batch it can work on, possibly depending on its options.
        volume: how much each output carries; by default as much as the first input.
        work: what it costs; without it the node is profiled, and until then counted as declared.
        check: what must hold of a call of it, beyond its types.
        annotations: of its options, by name, to check their values with.
        built_in: whether this package defines it.
    """

    type: NodeType
    label: str
    kernel: Callable[..., Any]
    unit: Unit | Callable[[Mapping[str, Any]], Unit]
    volume: Callable[[Call], tuple[Volume, ...]] | None = None
    work: Callable[[Call], Work] | None = None
    check: Check | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict[str, Any])
    built_in: bool = False


definitions: dict[str, NodeDefinition] = {}


def node_types() -> dict[str, NodeType]:
    """The contracts of all registered node types, by name."""
    return {name: definition.type for name, definition in definitions.items()}


@overload
@dataclass_transform(frozen_default=True)
def node(target: type[C], /) -> type[C]: ...
@overload
def node(target: Callable[P, R], /) -> Callable[P, R]: ...
@overload
@dataclass_transform(frozen_default=True)
def node(
    *,
    unit: Unit | Callable[[Mapping[str, Any]], Unit] = ...,
    role: Role = ...,
    place: Place | None = ...,
    label: str | None = ...,
    ports: Mapping[str, Port] | None = ...,
    heads: Mapping[str, tuple[str, ...]] | None = ...,
    volume: Callable[[Call], tuple[Volume, ...]] | None = ...,
    work: Callable[[Call], Work] | None = ...,
    check: Check | None = ...,
) -> Callable[[C], C]: ...
def node(target: Any = None, /, **settings: Any) -> Any:
    """Make a node type of a function, or of a class with `__call__` whose fields are its options.

    Args:
        target: the function or class; options of the decorator come as keywords.
        settings: `unit` (default BATCH: the node sees the whole batch at once, which is always
            right; declare SAMPLE or GROUP to let it stream), `role`, `place` (default DEVICE when
            it takes a model), `label`, `ports` and `heads` by model parameter, `volume`, `work`,
            `check`.

    Raises:
        CompileError: RG0504, for a signature that is no contract.
    """
    if target is None:
        return functools.partial(_define, settings=settings)
    return _define(target, settings=settings)


def _define(target: Any, settings: Mapping[str, Any]) -> Any:
    if inspect.isclass(target):
        return _define_class(target, settings)
    signature = _signature(target)
    definition = _definition(target.__name__, target, list(signature.parameters.values()),
                             signature.return_annotation,
                             {**settings, "module": target.__module__})  # fmt: skip
    return _recording(target, definition, signature, _no_options)


def _define_class(cls: type, settings: Mapping[str, Any]) -> type:
    made = cast("Any", dataclasses.dataclass(frozen=True)(cls))
    signature = _signature(made.__call__)
    options = list(_signature(made.__init__).parameters.values())[1:]
    inputs = list(signature.parameters.values())[1:]
    work = getattr(made, "work", None)
    if work is not None and "work" not in settings:
        settings = {**settings, "work": _class_work(made)}
    definition = _definition(
        made.__name__, _class_kernel(made), [*inputs, *options],
        signature.return_annotation, {**settings, "module": made.__module__},
    )  # fmt: skip
    given = functools.partial(_fields, made)
    made.__call__ = _recording(made.__call__, definition, signature, given)
    return made


def _fields(cls: Any, instance: Any) -> dict[str, Any]:
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(cls)}


def _class_kernel(cls: Any) -> Callable[..., Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    run = cls.__call__

    def kernel(**arguments: Any) -> Any:
        instance = cls(**{k: v for k, v in arguments.items() if k in names})
        return run(instance, **{k: v for k, v in arguments.items() if k not in names})

    kernel.__module__ = cls.__module__
    return kernel


def _class_work(cls: Any) -> Callable[[Call], Work]:
    return lambda call: cls(**call.options).work(**call.volumes)


def _no_options(_instance: Any) -> dict[str, Any]:
    return {}


def _recording(
    run: Callable[..., Any],
    definition: NodeDefinition,
    signature: inspect.Signature,
    given: Callable[[Any], Mapping[str, Any]],
) -> Callable[..., Any]:
    """`run`, except that inside a pipeline it is recorded instead."""
    method = "self" in signature.parameters

    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        builder = current_builder()
        if builder is None:
            return run(*args, **kwargs)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            wrong = next((k for k in kwargs if k not in signature.parameters), None)
            raise CompileError([*builder.diagnostics, misuse(definition, error, wrong)]) from None
        own = given(bound.arguments.pop("self") if method else None)
        return builder.add(definition, bound, own)

    cast("Any", call).definition = definition
    return call


def _definition(
    name: str,
    kernel: Callable[..., Any],
    parameters: list[inspect.Parameter],
    returns: Any,
    settings: Mapping[str, Any],
) -> NodeDefinition:
    _require_settings(name, settings)
    known = definitions.get(name)
    if known is not None and known.built_in and not _is_built_in(settings["module"]):
        message = f"a node type `{name}` is built in; another one would take its place everywhere"
        raise fail("RG0504", message, Span.of_frame(user_frame()), help=("give it another name",))
    ports: Mapping[str, Port] = settings.get("ports") or {}
    heads: Mapping[str, tuple[str, ...]] = settings.get("heads") or {}
    inputs: list[InputSpec] = []
    envs: list[str] = []
    models: list[ModelSpec] = []
    options: list[OptionSpec] = []
    for parameter in parameters:
        choices = _choices(parameter.annotation)
        carried = tuple(c.__name__ for c in choices if _is_carried(c))
        if carried:
            optional = types.NoneType in choices
            inputs.append(InputSpec(parameter.name, carried, optional))
        elif any(kind in choices for kind in (Model, Frozen, Served)):
            port = Port.SERVED if Model in choices else Port.FROZEN
            port = ports.get(parameter.name, port)
            models.append(ModelSpec(parameter.name, port, heads.get(parameter.name, ())))
        elif Env in choices:
            envs.append(parameter.name)
        else:
            options.append(_option(parameter))
    kind = NodeType(
        name=name,
        inputs=tuple(inputs),
        models=tuple(models),
        options=tuple(options),
        outputs=_outputs(name, returns),
        role=settings.get("role", Role.COMPUTE),
        place=settings.get("place") or (Place.DEVICE if models else Place.HOST),
        doc=(inspect.getdoc(kernel) or "").split("\n")[0],
        parameters=tuple(p.name for p in parameters),
        envs=tuple(envs),
    )
    definition = NodeDefinition(
        type=kind,
        label=settings.get("label") or name,
        kernel=kernel,
        unit=settings.get("unit", Unit.BATCH),
        volume=guarded(name, "volume", settings.get("volume")),
        work=guarded(name, "work", settings.get("work")),
        check=guarded(name, "check", settings.get("check")),
        annotations={p.name: p.annotation for p in parameters},
        built_in=_is_built_in(settings["module"]),
    )
    definitions[name] = definition
    return definition


SETTINGS = ("unit", "role", "place", "label", "ports", "heads", "volume", "work", "check")


def _require_settings(name: str, settings: Mapping[str, Any]) -> None:
    """RG0504 for a setting that the decorator does not have, and for a unit that is none."""
    span, unit = Span.of_frame(user_frame()), settings.get("unit", Unit.BATCH)
    for given in settings:
        if given not in (*SETTINGS, "module"):
            message = f"@rl.node of `{name}` has no setting `{given}`"
            raise fail("RG0504", message, span, help=(suggest(given, SETTINGS),))
    if not isinstance(unit, Unit) and not callable(unit):
        message = f"the unit of node `{name}` is {unit!r}"
        raise fail("RG0504", message, span, help=("unit=rl.SAMPLE, rl.GROUP or rl.BATCH",))


def _is_built_in(module: str) -> bool:
    return module.startswith("rlinf_graph.")


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with its annotations evaluated as far as they can be."""
    signature = inspect.signature(function)
    scope = dict(getattr(function, "__globals__", {}))
    return signature.replace(
        parameters=[p.replace(annotation=_evaluate(p.annotation, scope))
                    for p in signature.parameters.values()],
        return_annotation=_evaluate(signature.return_annotation, scope),
    )  # fmt: skip


def _evaluate(annotation: Any, scope: dict[str, Any]) -> Any:
    """A string annotation's value; the string itself when a name in it exists only for checkers."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, scope)
    except NameError:
        return annotation


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _is_carried(choice: Any) -> bool:
    return isinstance(choice, type) and issubclass(choice, Carried)


def _option(parameter: inspect.Parameter) -> OptionSpec:
    required = parameter.default is inspect.Parameter.empty
    shown = parameter.annotation
    text = shown if isinstance(shown, str) else inspect.formatannotation(shown)
    default = None if required else parameter.default
    return OptionSpec(parameter.name, re.sub(r"rlinf_graph\.[\w.]*\.", "", text), default, required)


def _outputs(name: str, returns: Any) -> tuple[str, ...]:
    if returns is None or returns is types.NoneType:
        return ()
    made = typing.get_args(returns) if typing.get_origin(returns) is tuple else (returns,)
    if not all(_is_carried(kind) for kind in made):
        raise fail(
            "RG0504",
            f"node `{name}` returns {_shown(returns)}, which no edge can carry",
            Span.of_frame(user_frame()),
            help=("annotate what it returns: a batch type, a tuple of them, or None",),
        )
    return tuple(cast("type[Carried]", kind).__name__ for kind in made)


def _shown(returns: Any) -> str:
    if returns is inspect.Signature.empty:
        return "something that is not annotated"
    return returns if isinstance(returns, str) else inspect.formatannotation(returns)
