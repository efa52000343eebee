"""Loops inside an iteration, and what is kept from one iteration to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast, overload

from rlinf_graph.dsl.builder import Builder, current_builder, user_frame
from rlinf_graph.dsl.node import NodeDefinition, definitions
from rlinf_graph.ir import packed, ragged
from rlinf_graph.ir.batch import Batch, Carried, Source
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import Input, Loop, Node
from rlinf_graph.ir.node_type import InputSpec, NodeType, Place, Role, Unit
from rlinf_graph.ir.span import Span

C = TypeVar("C", bound=Batch)
E = TypeVar("E", bound=Batch)
F = TypeVar("F", bound=Batch)


@overload
def unroll(
    body: Callable[[C], C], *, start: C, length: int, until: str = ..., steps: float | None = ...
) -> C: ...
@overload
def unroll(
    body: Callable[[C], tuple[C, E]],
    *,
    start: C,
    length: int,
    until: str = ...,
    steps: float | None = ...,
) -> tuple[C, E]: ...
@overload
def unroll(
    body: Callable[[C], tuple[C, E, F]],
    *,
    start: C,
    length: int,
    until: str = ...,
    steps: float | None = ...,
) -> tuple[C, E, F]: ...
def unroll(
    body: Callable[..., Any],
    *,
    start: Any,
    length: int,
    until: str = "",
    steps: float | None = None,
) -> Any:
    """Run a part of the pipeline again and again.

    Args:
        body: from the value of a step to that of the next, and to up to two batches that leave in
            every step. Its nodes may use batches from outside.
        start: the value of the first step.
        length: steps, at most.
        until: a bool field of the value, one for each sample: a sample leaves with the step after
            which it is true. By default all take all steps.
        steps: how many a sample takes on average, to plan with; `length` by default.

    Returns:
        The value after the last step, or after the step in which a sample was done. Beside it what
        left, joined: samples of equal `index` are one sample at its steps, one after another.
    """
    builder = current_builder()
    if builder is None:
        return _run(body, start, length, until)
    frame = user_frame()
    span = Span.of_frame(frame)
    _require(builder, body, start, (length, until), span)
    if builder.diagnostics:
        return start
    name = builder.unique(f"loop {getattr(body, '__name__', 'body').strip('<>')}")
    around = builder.regions[-1] if builder.regions else ""
    builder.regions.append(name)
    try:
        made = body(cast("type[Carried]", type(start)).symbol(Source(name)))
        outputs = cast("tuple[Any, ...]", made if isinstance(made, tuple) else (made,))
        _require_outputs(builder, body, start, outputs, span)
    finally:
        builder.regions.pop()
    if builder.diagnostics:
        return cast("Any", made)
    sources = [cast("Source", output.source) for output in outputs]
    node = Node(
        name=name,
        type="unroll",
        role=Role.REGION,
        unit=Unit.BATCH,
        inputs=(Input("start", start.source, type(start).__name__),),
        outputs=tuple(type(output).__name__ for output in outputs),
        region=around,
        loop=Loop(sources[0], tuple(sources[1:]), length, until, float(steps or length)),
        span=span,
    )
    builder.nodes.append(node)
    kinds: list[type[Carried]] = [type(output) for output in outputs]
    symbols = [kind.symbol(Source(name, place)) for place, kind in enumerate(kinds)]
    return tuple(symbols) if len(symbols) > 1 else symbols[0]


def state(value: C) -> C:
    """Keep a batch from one iteration to the next; `carry` says which takes its place.

    Args:
        value: what the first iteration begins with. Nodes that nothing else asks for what they make
            run in the first iteration only.
    """
    builder = current_builder()
    if builder is None:
        return value
    span = Span.of_frame(user_frame())
    if not isinstance(value, Batch) or not builder.visible(value, span):  # pyright: ignore[reportUnnecessaryIsInstance]  users may not run a checker
        _not_a_batch(builder, "state", value, span)
        return value
    name = builder.unique("state")
    source = cast("Source", value.source)
    node = Node(
        name=name,
        type="state",
        role=Role.STATE,
        unit=Unit.BATCH,
        inputs=(Input("value", source, type(value).__name__),),
        outputs=(type(value).__name__,),
        region=builder.regions[-1] if builder.regions else "",
        span=span,
    )
    if node.region:
        message = "a state is kept between iterations, and stands outside of loops"
        builder.report("RG0207", message, span, help=("declare it above the loop",))
    builder.nodes.append(node)
    return type(value).symbol(Source(name))


def carry(value: C, *, into: C) -> None:
    """Make a batch the value of a state in the next iteration.

    Args:
        value: of this iteration.
        into: what `state` returned.
    """
    builder = current_builder()
    span = Span.of_frame(user_frame())
    if builder is None:
        raise fail("RG0207", "rl.carry has a meaning only inside a pipeline", span)
    if builder.diagnostics:
        return
    if not isinstance(value, Batch) or not builder.visible(value, span):  # pyright: ignore[reportUnnecessaryIsInstance]  users may not run a checker
        _not_a_batch(builder, "carry", value, span)
        return
    place = _state_of(builder, into, span)
    if place is None:
        return
    node = builder.nodes[place]
    if (type(value).__name__,) != node.outputs:
        builder.report(
            "RG0101",
            f"the state holds {node.outputs[0]}, and {type(value).__name__} is carried into it",
            span.argument("value", ("value",)),
            notes=(f"the state is declared at {node.span}",),
        )
        return
    carried = Input("value", cast("Source", value.source), type(value).__name__, lag=1)
    builder.nodes[place] = replace(node, inputs=(*node.inputs, carried))


def _state_of(builder: Builder, into: Any, span: Span) -> int | None:
    """The place of a state among the nodes; None, with a report, where it is none."""
    source = getattr(into, "source", None)
    for place, node in enumerate(builder.nodes):
        if source == Source(node.name) and node.role is Role.STATE:
            if len(node.inputs) == 1:
                return place
            notes = (f"the state is declared at {node.span}",)
            message = "a state takes one value for the next iteration, and this is the second"
            builder.report("RG0207", message, span, notes=notes)
            return None
    help_text = ("start = rl.state(first)", "rl.carry(last, into=start)")
    builder.report("RG0207", "`into` is no state", span.argument("into"), help=help_text)
    return None


def _not_a_batch(builder: Builder, what: str, value: Any, span: Span) -> None:
    if not builder.diagnostics:
        message = f"rl.{what} takes a batch of this pipeline, not {type(value).__name__}"
        builder.report("RG0101", message, span, help=("give what a node returned",))


def _require(builder: Builder, body: Any, start: Any, limits: tuple[int, str], span: Span) -> None:
    """What can be said before the body runs."""
    length, until = limits
    if not callable(body):
        builder.report("RG0104", "`body` of rl.unroll is a function", span.argument("body"))
    if not isinstance(start, Batch) or not builder.visible(start, span.argument("start")):
        _not_a_batch(builder, "unroll", start, span.argument("start"))
        return
    if not isinstance(length, int) or length < 1:  # pyright: ignore[reportUnnecessaryIsInstance]  users may not run a checker
        message = f"`length` of rl.unroll is {length!r}; it has to be at least 1"
        builder.report("RG0104", message, span.argument("length"))
    if until and until not in type(start).columns_by_axis()["sample"]:
        known = ", ".join(type(start).columns_by_axis()["sample"])
        message = f"`until` names `{until}`, which {type(start).__name__} does not have"
        builder.report("RG0206", message, span.argument("until"), help=(f"it has: {known}",))


def _require_outputs(
    builder: Builder, body: Any, start: Any, outputs: tuple[Any, ...], span: Span
) -> None:
    """The body gives the value of the next step, and batches of its own."""
    if builder.diagnostics:
        return
    name, region = getattr(body, "__name__", "body"), builder.regions[-1]
    for place, output in enumerate(outputs):
        if not isinstance(output, Batch) or output.source is None:
            shown = type(output).__name__
            message = f"`{name}` returns {shown}; a loop's body returns batches that it makes"
            builder.report("RG0206", message, span.argument("body"))
        elif output.source.node == region or not _inside(builder, output.source.node):
            message = f"`{name}` returns a batch that its loop does not make"
            notes = (f"output {place} is `{output.source}`",)
            builder.report("RG0206", message, span.argument("body"), notes=notes)
    if builder.diagnostics:
        return
    if type(outputs[0]) is not type(start):
        message = (
            f"`{name}` takes {type(start).__name__} and gives {type(outputs[0]).__name__}: "
            "a step could not begin with what the one before made"
        )
        label = f"begins with {type(start).__name__}"
        builder.report("RG0206", message, span.argument("start"), label=label)


def _inside(builder: Builder, name: str) -> bool:
    made = next((node for node in builder.nodes if node.name == name), None)
    return made is not None and made.region == builder.regions[-1]


def _run(body: Callable[..., Any], value: Any, length: int, until: str) -> Any:
    """The loop on values, outside of a pipeline."""
    left: list[list[Any]] = []
    ended: list[Any] = []
    for step in range(length):
        made: Any = body(value)
        outputs = cast("tuple[Any, ...]", made if isinstance(made, tuple) else (made,))
        value = outputs[0]
        left = left or [[] for _ in outputs[1:]]
        for kept, output in zip(left, outputs[1:], strict=True):
            kept.append(output)
        if not until or step + 1 == length:
            continue
        done = getattr(value, until).cpu().numpy()
        ended.append(packed.select(value, done.nonzero()[0]))
        value = packed.select(value, (~done).nonzero()[0])
    last = ragged.join([*ended, value])
    return (last, *(ragged.join(kept) for kept in left)) if left else last


def _runs_elsewhere(**_arguments: Any) -> Any:
    raise RuntimeError("a region has no kernel: the nodes of its body run")


def _kept(value: Any) -> Any:
    return value


def _register(kind: NodeType, kernel: Callable[..., Any]) -> None:
    definition = NodeDefinition(
        type=kind, label=kind.name, kernel=kernel, unit=Unit.BATCH, built_in=True
    )
    definitions[kind.name] = definition


_register(
    NodeType(
        name="unroll",
        inputs=(InputSpec("start", ()),),
        role=Role.REGION,
        place=Place.HOST,
        doc="Run a part of the pipeline again and again.",
        parameters=("body", "start", "length", "until", "steps"),
    ),
    _runs_elsewhere,
)
_register(
    NodeType(
        name="state",
        inputs=(InputSpec("value", ()),),
        role=Role.STATE,
        place=Place.HOST,
        doc="Keep a batch from one iteration to the next.",
        parameters=("value",),
    ),
    _kept,
)
