"""Collects the calls of one pipeline function into a graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import rlinf_graph
from rlinf_graph.dsl.env import Env, define_env
from rlinf_graph.dsl.model import SMALL, Frozen, Model, Served
from rlinf_graph.dsl.option import fits, misfit
from rlinf_graph.ir.batch import Carried, Pending, Source
from rlinf_graph.ir.diagnostic import Diagnostic, suggest
from rlinf_graph.ir.graph import EnvDef, Input, ModelDef, ModelUse, Node
from rlinf_graph.ir.node_type import InputSpec, ModelSpec, NodeType, OptionSpec, Port, Role
from rlinf_graph.ir.span import Span, caller
from rlinf_graph.ir.value import freeze, to_json

if TYPE_CHECKING:
    from rlinf_graph.dsl.node import NodeDefinition

building: ContextVar[Builder | None] = ContextVar("building", default=None)


def current_builder() -> Builder | None:
    """The builder of the pipeline that is being built, if one is."""
    return building.get()


_PACKAGE = str(Path(rlinf_graph.__file__).parent)


def user_frame() -> FrameType:
    """The innermost frame outside this package."""
    frame = caller()
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return frame


class Builder:
    """The graph under construction and everything found wrong with it so far."""

    def __init__(self, outer_names: Mapping[str, Any]) -> None:
        """`outer_names` are the variables the pipeline function sees; models are named by them."""
        self.nodes: list[Node] = []
        self.models: dict[int, ModelDef] = {}
        self.envs: dict[int, EnvDef] = {}
        self.diagnostics: list[Diagnostic] = []
        self.served: dict[tuple[str, str], Served] = {}
        self.regions: list[str] = []
        self._outer_names = outer_names

    def add(
        self,
        definition: NodeDefinition,
        arguments: inspect.BoundArguments,
        given: Mapping[str, Any],
    ) -> Any:
        """Record a call and return its symbolic outputs.

        `given` are a class node's options, which were set when it was constructed.
        """
        frame = user_frame()
        span, kind = Span.of_frame(frame), definition.type
        values = {**given, **arguments.arguments}
        uses = [
            self._use(spec, values.get(spec.name), frame, definition, span) for spec in kind.models
        ]
        models = tuple(use for use in uses if use is not None)
        envs = [(name, self._env(name, values.get(name), frame, kind, span)) for name in kind.envs]
        owned = [*(spec.name for spec in kind.models), *kind.envs]
        names = [self._name_of(values.get(name), frame) for name in owned]
        inputs = [self._input(spec, values.get(spec.name), kind, span) for spec in kind.inputs]
        options = tuple((o.name, self._option(o, values, definition, span)) for o in kind.options)
        if self.diagnostics:
            return self._symbols(kind, "?")
        name = self.unique(" ".join([definition.label, *names]))
        unit = definition.unit(dict(options)) if callable(definition.unit) else definition.unit
        node = Node(
            name=name,
            type=kind.name,
            role=kind.role,
            unit=unit,
            inputs=tuple(i for i in inputs if i is not None),
            models=models,
            options=options,
            outputs=kind.outputs,
            envs=tuple(envs),
            region=self.regions[-1] if self.regions else "",
            span=span,
        )
        self.nodes.append(node)
        return self._symbols(kind, name)

    def _symbols(self, kind: NodeType, name: str) -> Any:
        symbols = [Carried.types[t].symbol(Source(name, i)) for i, t in enumerate(kind.outputs)]
        if len(symbols) > 1:
            return tuple(symbols)
        return symbols[0] if symbols else None

    def report(self, code: str, message: str, span: Span, **more: Any) -> None:
        """Keep an error; the pipeline function goes on."""
        self.diagnostics.append(Diagnostic(code, message, span, **more))

    def _input(self, spec: InputSpec, value: Any, kind: NodeType, span: Span) -> Input | None:
        if value is None:
            return None
        at = span.argument(spec.name, kind.parameters)
        if isinstance(value, Carried) and value.source is not None and self.visible(value, at):
            return Input(spec.name, value.source, type(value).__name__)
        self.report(
            "RG0101",
            f"`{kind.name}` takes {' or '.join(spec.types)} for `{spec.name}`, not {_kind(value)}",
            at,
            label="no batch of this pipeline",
            help=_as_batch(value),
        )
        return None

    def visible(self, value: Carried, span: Span) -> bool:
        """Whether a symbol can be used here; one of a loop's body that has ended is reported."""
        source = value.source
        if source is None or self.diagnostics or source.node in ("?", *self.regions):
            return source is not None
        made = next((node for node in self.nodes if node.name == source.node), None)
        if made is None:
            return False
        if made.region and made.region not in self.regions:
            self.report(
                "RG0206",
                f"this {type(value).__name__} is made in the body of `{made.region}`, and used "
                "outside of it",
                span,
                label=f"comes from `{source}`",
                help=("return it from the body beside the carried value: return carried, it",),
            )
        return True

    def _env(self, param: str, value: Any, frame: FrameType, kind: NodeType, span: Span) -> str:
        if isinstance(value, Env):
            return self._declare_env(value, frame)
        message = f"`{param}` of `{kind.name}` takes an rl.Env, not {type(value).__name__}"
        shown = f'env = rl.Env("{value}")' if isinstance(value, str) else "rl.Env(...)"
        at = span.argument(param, kind.parameters)
        self.report("RG0104", message, at, help=(f"declare it above the pipeline: {shown}",))
        return ""

    def _declare_env(self, env: Env, frame: FrameType) -> str:
        if id(env) not in self.envs:
            self.envs[id(env)] = define_env(env, self._name_of(env, frame))
        return self.envs[id(env)].name

    def _use(
        self,
        spec: ModelSpec,
        value: Any,
        frame: FrameType,
        definition: NodeDefinition,
        span: Span,
    ) -> ModelUse | None:
        kind = definition.type
        if isinstance(value, Frozen):
            return ModelUse(spec.name, self._declare(value.model, frame), Port.FROZEN)
        if isinstance(value, Model):
            return ModelUse(spec.name, self._declare(value, frame), spec.port)
        if isinstance(value, Served):
            return self._named_port(spec, value, frame, definition, span)
        what = type(value).__name__
        at = span.argument(spec.name, kind.parameters)
        shown = f'model = rl.Model("{value}")' if isinstance(value, str) else "rl.Model(...)"
        message = f"`{spec.name}` of `{kind.name}` takes an rl.Model, not {what}"
        self.report("RG0104", message, at, help=(f"declare it above the pipeline: {shown}",))
        return None

    def _named_port(
        self,
        spec: ModelSpec,
        value: Served,
        frame: FrameType,
        definition: NodeDefinition,
        span: Span,
    ) -> ModelUse | None:
        """The use of a named port, by a node that takes one."""
        kind, model, name = definition.type, self._declare(value.model, frame), value.name
        at = span.argument(spec.name, kind.parameters)
        annotation = definition.annotations.get(spec.name)
        if Served not in (get_args(annotation) or (annotation,)):
            message = f"`{spec.name}` of `{kind.name}` takes a model, and no named port of one"
            label = f"the port `{name}` of `{model}`"
            self.report("RG0105", message, at, label=label, help=(f"{spec.name}={model}",))
            return None
        first = self.served.setdefault((model, name), value)
        if first is not value and first.decay != value.decay:
            message = f"`{model}` has two served ports named `{name}`, of different decay"
            notes = (f"the other has decay={first.decay}, this one {value.decay}",)
            self.report("RG0106", message, at, notes=notes, help=("give one another name",))
        decay = value.decay if kind.role is Role.SYNC else 0.0
        return ModelUse(spec.name, model, Port.SERVED, name, decay)

    def _option(
        self, spec: OptionSpec, values: Mapping[str, Any], definition: NodeDefinition, span: Span
    ) -> Any:
        kind, given = definition.type, values.get(spec.name, spec.default)
        at = span.argument(spec.name, kind.parameters)
        if not fits(given, definition.annotations.get(spec.name)) and given is not spec.default:
            shown = given.__name__ if isinstance(given, type) else repr(given)
            message = f"`{spec.name}` of `{kind.name}` takes {spec.annotation}, not {shown:.80}"
            self.report("RG0104", message, at, help=_as_option(given, spec))
            return None
        if wrong := misfit(given):
            field, annotation, held = wrong
            message = f"`{field}` of {type(given).__name__} takes {annotation}, not {held!r:.80}"
            self.report("RG0104", message, at.argument(field))
            return None
        try:
            value = freeze(given)
            to_json(value)
        except (TypeError, RecursionError) as error:
            why = str(error) if isinstance(error, TypeError) else "the value contains itself"
            self.report("RG0104", f"option `{spec.name}` of `{kind.name}`: {why:.160}", at)
            return None
        return value

    def _declare(self, model: Model, frame: FrameType) -> str:
        if id(model) not in self.models:
            engines = {"rollout": model.rollout, "train": model.train}
            self.models[id(model)] = ModelDef(
                name=model.name or self._name_of(model, frame),
                path=model.path,
                head=model.head,
                dtype=model.dtype,
                weights="random" if model.path.startswith(SMALL) else model.weights,
                engines=tuple((k, v) for k, v in engines.items() if v),
                env=self._declare_env(model.env, frame) if model.env else "",
                span=model.span,
            )
        return self.models[id(model)].name

    def _name_of(self, value: Any, frame: FrameType) -> str:
        if isinstance(value, Model | Env) and value.name:
            return value.name
        for names in (frame.f_locals, self._outer_names):
            for name, bound in names.items():
                if bound is value and isinstance(value, Model | Frozen | Env):
                    return name
        if isinstance(value, Served):
            return value.name
        if isinstance(value, Frozen):
            return f"{self._name_of(value.model, frame)}.frozen"
        path = value.path if isinstance(value, Model | Env) else "?"
        return path.rstrip("/").rsplit("/", 1)[-1] if isinstance(path, str) else path.__name__

    def unique(self, name: str) -> str:
        """`name`, with a number behind it where a node has that name already."""
        taken = {*self.regions, *(node.name for node in self.nodes)}
        if name not in taken:
            return name
        return next(n for n in (f"{name} {i}" for i in range(2, len(taken) + 3)) if n not in taken)


def _kind(value: Any) -> str:
    if isinstance(value, Pending):
        return value.what
    name = type(value).__name__
    if not isinstance(value, Carried):
        return f"a {name}"
    return f"{name} of another pipeline" if value.source else f"{name} made outside of a node"


def _as_batch(value: Any) -> tuple[str, ...]:
    """What to do with a value that is no batch."""
    if isinstance(value, Pending):
        return (f"give {value.what.split('.')[0]} itself, or compute in a node: @rl.node",)
    if isinstance(value, Carried):
        return ("call the node in this pipeline; to compute with a batch, write a node: @rl.node",)
    return ("give what a node of this pipeline returned",)


def _as_option(given: Any, spec: OptionSpec) -> tuple[str, ...]:
    """The value that was meant, where it is plain."""
    if isinstance(given, type):
        return (f"{spec.name}=rl.{given.__name__}()",)
    if isinstance(given, str) and spec.annotation.startswith("tuple[str"):
        return (f"{spec.name}=({given!r},)",)
    if isinstance(given, str) and given.isdigit():
        return (f"{spec.name}={given}",)
    if isinstance(given, float) and given.is_integer():
        return (f"{spec.name}={int(given)}",)
    return ()


def misuse(definition: NodeDefinition, error: TypeError, wrong: str | None) -> Diagnostic:
    """The diagnostic for a call that does not match a node's signature."""
    kind = definition.type
    known = [s.name for s in (*kind.inputs, *kind.models, *kind.options)]
    usage = ("rl.sync(weights, into=model)",) if kind.role is Role.SYNC else ()
    return Diagnostic(
        "RG0104",
        f"`{definition.label}`: {error}",
        Span.of_frame(user_frame()),
        help=(suggest(wrong, known),) if wrong else usage,
    )
