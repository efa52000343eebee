"""`@rl.pipeline`: a function that declares one iteration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast, overload

from pydantic import TypeAdapter, ValidationError

from rlinf_graph.dsl.builder import Builder, building, user_frame
from rlinf_graph.ir.batch import Carried, Pending
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic, fail, suggest
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.span import Span, caller
from rlinf_graph.ir.value import freeze


@dataclass(frozen=True, eq=False)
class Pipeline:
    """One iteration, declared and not built yet.

    Attributes:
        function: the user's function.
        pins: node name to device ids (`"0-7"`), around which the rest is optimized.
        span: where it is declared.
    """

    function: Callable[..., None]
    pins: Mapping[str, str] = field(default_factory=dict[str, str])
    span: Span | None = None

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
        """A pipeline is compiled, not called."""
        raise fail(
            "RG0108",
            f"pipeline `{self.name}` was called",
            Span.of_frame(caller()),
            help=("rlinf-graph run FILE",),
        )

    def build(self, **parameters: Any) -> Graph:
        """The graph of one iteration.

        Args:
            parameters: values of the function's parameters; text is converted to their types.

        Raises:
            CompileError: with everything wrong in the function's calls.
        """
        bound = self._bind(parameters)
        builder = Builder(_names_seen_by(self.function))
        token = building.set(builder)
        try:
            self.function(**bound)
        except CompileError as error:
            kept = [d for d in builder.diagnostics if d not in error.diagnostics]
            raise CompileError([*kept, *error.diagnostics]) from None
        except (Exception, SystemExit) as error:
            raise CompileError([*builder.diagnostics, _raised(self, error)]) from error
        finally:
            building.reset(token)
        if builder.diagnostics:
            raise CompileError(builder.diagnostics)
        if not builder.nodes:
            message = f"pipeline `{self.name}` calls no node"
            raise fail("RG0205", message, self.span, help=("call nodes, such as rl.dataset",))
        return Graph(
            name=self.name,
            nodes=tuple(builder.nodes),
            models=tuple(builder.models.values()),
            envs=tuple(builder.envs.values()),
            file=self.function.__code__.co_filename,
            parameters=tuple((k, freeze(v)) for k, v in bound.items()),
            pins=tuple(self.pins.items()),
            span=self.span,
        )

    def _bind(self, given: Mapping[str, Any]) -> dict[str, Any]:
        try:
            signature = inspect.signature(self.function, eval_str=True)
        except NameError as error:
            message = f"an annotation of pipeline `{self.name}` cannot be read: {error}"
            raise fail("RG0107", message, self.span, help=("import that name",)) from None
        bound = {n: p.default for n, p in signature.parameters.items()} | dict(given)
        for name in given:
            if name not in signature.parameters:
                message = f"pipeline `{self.name}` has no parameter `{name}`"
                known = suggest(name, signature.parameters)
                raise fail("RG0107", message, self.span, help=(known,))
        for name, parameter in signature.parameters.items():
            if bound[name] is inspect.Parameter.empty:
                message = f"pipeline `{self.name}` needs a value for `{name}`"
                raise fail("RG0107", message, self.span, help=(f"--set {name}=...",))
            bound[name] = self._convert(name, bound[name], parameter.annotation)
        return bound

    def _convert(self, name: str, value: Any, annotation: Any) -> Any:
        if annotation is inspect.Parameter.empty:
            return value
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            shown = inspect.formatannotation(annotation)
            message = f"`{name}` of pipeline `{self.name}` takes {shown}, not {value!r}"
            notes = (error.errors()[0]["msg"],)
            raise fail("RG0107", message, self.span, notes=notes) from None


@overload
def pipeline(function: Callable[..., None], /) -> Pipeline: ...
@overload
def pipeline(*, pins: Mapping[str, str]) -> Callable[[Callable[..., None]], Pipeline]: ...
def pipeline(
    function: Callable[..., None] | None = None, /, *, pins: Mapping[str, str] | None = None
) -> Any:
    """Declare a pipeline.

    Args:
        function: declares one iteration by calling nodes; its typed parameters can be set from
            the command line.
        pins: devices of nodes, such as `{"rollout": "0-7"}`.
    """

    def declare(declared: Callable[..., None]) -> Pipeline:
        _require_plain(declared)
        code = declared.__code__
        start = code.co_firstlineno
        while not Span(code.co_filename, start, 1, start, 1).source.lstrip().startswith("def "):
            if start > code.co_firstlineno + 50:
                start = code.co_firstlineno
                break
            start += 1
        source = Span(code.co_filename, start, 1, start, 1).source
        column = source.find(declared.__name__) + 1 or 1
        span = Span(code.co_filename, start, column, start, column + len(declared.__name__))
        return Pipeline(declared, _read_pins(pins, span), span)

    return declare(function) if function is not None else declare


def _read_pins(pins: Any, span: Span) -> dict[str, str]:
    """Pins as text; RG0407 for anything else."""
    given: Any = pins or {}
    if not isinstance(given, Mapping) or not all(
        isinstance(text, str) for text in cast("Mapping[Any, Any]", given).values()
    ):
        message = f"pins are {given!r}; they map the names of nodes to text"
        raise fail("RG0407", message, span, help=('pins={"rollout": "0-3"}',))
    return dict(cast("Mapping[str, str]", given))


def _require_plain(declared: Any) -> None:
    kinds = {
        "a coroutine": inspect.iscoroutinefunction(declared),
        "a generator": inspect.isgeneratorfunction(declared),
        f"{type(declared).__name__}": not inspect.isfunction(declared),
    }
    wrong = next((kind for kind, is_that in kinds.items() if is_that), None)
    if wrong is not None:
        raise fail(
            "RG0108",
            f"a pipeline is a plain function, and `{getattr(declared, '__name__', declared)}` is "
            f"{wrong}",
            Span.of_frame(user_frame()),
            help=("declare one iteration in a function: def name() -> None",),
        )


def _raised(pipeline: Pipeline, error: BaseException) -> Diagnostic:
    """RG0109, at the innermost line that is the user's."""
    traceback, span = error.__traceback__, pipeline.span
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == pipeline.function.__code__.co_filename:
            span = Span.of_traceback(traceback)
        traceback = traceback.tb_next
    said = f"{type(error).__name__}: {error}"
    help_text = ("batches are computed by nodes: @rl.node def ...",) if _on_batch(error) else ()
    return Diagnostic(
        "RG0109", f"pipeline `{pipeline.name}` raised {said}", span, "raised here", help=help_text
    )


def _on_batch(error: BaseException) -> bool:
    """Whether Python was asked to work with a batch."""
    names = (*Carried.types, Pending.__name__)
    return isinstance(error, TypeError) and any(name in str(error) for name in names)


def _names_seen_by(function: Callable[..., None]) -> dict[str, Any]:
    closure = inspect.getclosurevars(function)
    return {**function.__globals__, **closure.nonlocals}
