"""From a module and the shapes of its inputs to its table of operations."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from types import TracebackType
from typing import Any

import torch
import torch.fx.experimental._config as shapes_config
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_leaves

from rlinf_graph.dsl.builder import user_frame
from rlinf_graph.ir.diagnostic import CompileError, fail
from rlinf_graph.ir.operations import Gap, Operations
from rlinf_graph.ir.span import Span
from rlinf_graph.nodes.tracing.attention import calls_seen
from rlinf_graph.nodes.tracing.meter import OWN, Meter, Uncapturable
from rlinf_graph.nodes.tracing.operators import dtype_name

META = torch.device("meta")
BACKWARD = 3
"""A forward and a backward pass, in forward passes."""

Shape = tuple[tuple[int, ...], str]
"""Sizes of an input and its number format."""


@dataclass
class _Subject:
    """What is traced, on the `meta` device."""

    run: Callable[..., Any]
    inputs: list[Tensor]
    weights: list[nn.Parameter]
    buffers: list[Tensor]
    modules: dict[nn.Module, str]

    @property
    def trained(self) -> list[Tensor]:
        """What gradients are taken of: weights, or the inputs of what has none."""
        if self.weights:
            return [weight for weight in self.weights if weight.requires_grad]
        return [given for given in self.inputs if given.is_floating_point()]


def capture(build: Any, shapes: Sequence[Shape], *, backward: bool, samples: int) -> Operations:
    """Run a module without storage and note what it launches.

    Args:
        build: a module, a function of tensors, or something without parameters that makes either.
        shapes: of its inputs.
        backward: whether gradients are taken, too.
        samples: that the shapes stand for.

    Raises:
        CompileError: RG0512, for a module that raises, whatever the values.
    """
    subject = _subject(build, shapes, backward=backward)
    meter = Meter([*subject.weights, *subject.buffers])
    meter.track(subject.inputs)
    entered: set[nn.Module] = set()
    forward, ended = 0, False
    try:
        with _running(meter, subject, entered, backward=backward):
            made = subject.run(*subject.inputs)
            forward = meter.launches
            if backward:
                _differentiate(subject, made, meter)
    except Uncapturable:
        ended = True
    except CompileError:
        raise
    except Exception as error:
        if not _for_lack_of_values(error, meter):
            raise _raised(build, shapes, error) from error
        meter.gap(*_named(error))
        ended = True
    gaps = tuple(meter.gaps)
    if ended:
        gaps = (*gaps[:-1], _completed(gaps[-1], subject, meter, entered, forward, backward))
    return _table(subject, meter, gaps, backward=backward, samples=samples)


def _table(
    subject: _Subject, meter: Meter, gaps: tuple[Gap, ...], *, backward: bool, samples: int
) -> Operations:
    formats = Counter[str]()
    for weight in subject.weights or [t for t in subject.inputs if t.is_floating_point()]:
        formats[dtype_name(weight.dtype)] += weight.numel()
    learned = [weight for weight in subject.weights if weight.requires_grad]
    return Operations(
        samples=samples,
        batch=samples,
        table=meter.table,
        parameters=float(sum(t.nbytes for t in (*subject.weights, *subject.buffers))),
        gradients=float(sum(t.nbytes for t in learned)) if backward else 0.0,
        live=float(meter.peak),
        weight_dtype=formats.most_common(1)[0][0] if formats else "float32",
        gaps=gaps,
    )


def _completed(
    gap: Gap,
    subject: _Subject,
    meter: Meter,
    entered: set[nn.Module],
    forward: int,
    backward: bool,
) -> Gap:
    """The gap where the run ended, with what would have come after it.

    Leaf modules that were not entered stand for a launch each; weights that were not reached for
    two operations at each position of the first input (Kaplan et al. 2020); a backward pass for two
    forward passes.
    """
    weights = {*subject.weights}
    unseen = 0 if forward else sum(w.numel() for w in weights if id(w) not in meter.used)
    leaves = [m for m in subject.modules if not any(m.children()) and m not in entered]
    launches = forward or meter.launches + 1 + len(leaves)
    times = BACKWARD if backward else 1
    flops = 2.0 * unseen * _positions(subject.inputs) * times
    return replace(gap, hidden=max(1, launches * times - meter.launches), flops=flops)


def _positions(inputs: Sequence[Tensor]) -> int:
    """Tokens of a first input of numbers; vectors of one of floats."""
    if not inputs:
        return 1
    first = inputs[0]
    return first.shape[:-1].numel() if first.is_floating_point() else first.numel()


def _subject(build: Any, shapes: Sequence[Shape], *, backward: bool) -> _Subject:
    try:
        with META:
            run = _made(build)
            inputs = [torch.empty(sizes, dtype=_dtype(name)) for sizes, name in shapes]
    except CompileError:
        raise
    except Exception as error:
        raise _raised(build, shapes, error) from error
    module = run if isinstance(run, nn.Module) else None
    if module is not None:
        module.train(backward)
    weights = list(module.parameters()) if module else []
    if backward and not weights:
        inputs = [t.requires_grad_() if t.is_floating_point() else t for t in inputs]
    return _Subject(
        run=run,
        inputs=inputs,
        weights=weights,
        buffers=list(module.buffers()) if module else [],
        modules={inner: name for name, inner in module.named_modules()} if module else {},
    )


def _made(build: Any) -> Any:
    """What is run: a copy without storage of a module, what a factory makes, or the function."""
    if isinstance(build, nn.Module):
        held = (*build.parameters(), *build.buffers())
        return copy.deepcopy(build, {id(tensor): _bare(tensor) for tensor in held})
    needed = () if inspect.isclass(build) else inspect.signature(build).parameters.values()
    takes = any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in needed)
    return build if takes else build()


def _bare(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"torch has no number format {name!r}")
    return found


@contextmanager
def _running(
    meter: Meter, subject: _Subject, entered: set[nn.Module], *, backward: bool
) -> Iterator[None]:
    """The state of torch during a run: `meter` sees everything and knows the module at work."""
    path: list[str] = []

    def enter(module: nn.Module, _given: Any) -> None:
        entered.add(module)
        path.append(subject.modules.get(module, ""))
        meter.module = path[-1]

    def leave(_module: nn.Module, _given: Any, _made: Any) -> None:
        path.pop()
        meter.module = path[-1] if path else ""

    begin = hooks.register_module_forward_pre_hook(enter)
    end = hooks.register_module_forward_hook(leave, always_call=True)
    learning = [weight for weight in subject.weights if weight.requires_grad] if backward else []
    told = [weight.register_hook(meter.kept) for weight in learning]
    try:
        with (
            torch.set_grad_enabled(backward),
            shapes_config.patch(  # pyright: ignore[reportAttributeAccessIssue] set when imported
                meta_nonzero_assume_all_nonzero=True
            ),
            META,
            meter,
            calls_seen(meter),
        ):
            yield
    finally:
        for handle in (begin, end, *told):
            handle.remove()


def _differentiate(subject: _Subject, made: Any, meter: Meter) -> None:
    """Gradients of all outputs that have some."""
    meter.module = ""
    outputs = [tensor for tensor in _tensors(made) if tensor.requires_grad]
    if not outputs:
        raise TypeError("backward=True, but none of its outputs depends on a weight or input")
    upstream = [torch.empty_like(output) for output in outputs]
    torch.autograd.grad(outputs, subject.trained, upstream, allow_unused=True)


def _tensors(made: Any) -> Iterator[Tensor]:
    """Those in what a module returns: a nest of containers and dataclasses."""
    for leaf in tree_leaves(made):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf):
            yield from _tensors([getattr(leaf, field.name) for field in fields(leaf)])


def _for_lack_of_values(error: Exception, meter: Meter) -> bool:
    """Whether a run on real tensors might have gone on."""
    lacking = isinstance(error, NotImplementedError) or "meta" in str(error).lower()
    return lacking or any("no kernel" in gap.reason for gap in meter.gaps)


def _named(error: Exception) -> tuple[str, str]:
    return type(error).__name__, str(error).partition("\n")[0]


def _raised(build: Any, shapes: Sequence[Shape], error: Exception) -> CompileError:
    name = getattr(build, "__name__", type(build).__name__)
    given = ", ".join(f"{dtype} {'×'.join(map(str, sizes))}" for sizes, dtype in shapes)
    message = f"`{name}` cannot be traced: it raised {type(error).__name__}: {_named(error)[1]}"
    notes = (f"it was given {given}",) if given else ()
    inside = _raised_at(error)
    span, label = (
        (inside, "raised here") if inside else (Span.of_frame(user_frame()), "traced here")
    )
    return fail("RG0512", message, span, notes=notes, label=label)


def _raised_at(error: Exception) -> Span | None:
    """The innermost line of the user's."""
    found: Span | None = None
    step: TracebackType | None = error.__traceback__
    while step is not None:
        if not step.tb_frame.f_code.co_filename.startswith((*OWN, "<")):
            found = Span.of_traceback(step)
        step = step.tb_next
    return found
