"""Call a user's reward function, and say what went wrong in it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from numbers import Real
from types import TracebackType
from typing import Any

import numpy as np

from rlinf_graph.ir.batches import Rollouts
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic, suggest
from rlinf_graph.ir.span import Span
from rlinf_graph.ir.value import FunctionRef

Verifier = Callable[..., float]
"""From an answer, and by name what else it wants to know of the sample, to a number."""

SHOWN = 200
"""Characters of a prompt or an answer that a diagnostic shows."""


@dataclass(frozen=True)
class Wanted:
    """The parameters of a verifier after the answer."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    everything: bool = False

    @classmethod
    def by(cls, function: Verifier) -> Wanted:
        """Read them from the signature; a function without one gets the answer alone."""
        try:
            parameters = list(inspect.signature(bare(function)).parameters.values())
        except (TypeError, ValueError):
            return cls()
        named = [p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return cls(
            required=tuple(p.name for p in named if p.default is p.empty),
            optional=tuple(p.name for p in named if p.default is not p.empty),
            everything=any(p.kind is p.VAR_KEYWORD for p in parameters),
        )

    def of(self, known: dict[str, Any]) -> dict[str, Any]:
        """The arguments among what is known of a sample."""
        if self.everything:
            return known
        return {n: known[n] for n in (*self.required, *self.optional) if n in known}

    def missing(self, known: Collection[str]) -> list[str]:
        """Parameters that nothing known of a sample can fill."""
        return [name for name in self.required if name not in known]


def rewards_of(rollouts: Rollouts, function: Verifier) -> list[float]:
    """What a verifier gives for each sample, in order.

    Args:
        rollouts: `n` samples.
        function: its first parameter is the answer; the others are taken by name from the sample's
            columns, `prompt` from its prompt.

    Raises:
        CompileError: RG0506, for a parameter that is no column; RG0507, where the function raises
            or returns something other than a finite number.
    """
    wanted = Wanted.by(function)
    made: list[float] = []
    for row, answer in enumerate(rollouts.responses):
        known = {"prompt": rollouts.prompts[row], **rollouts.columns[row]}
        if wanted.missing(known):
            raise CompileError(list(unfilled(function, known, None)))
        try:
            value: Any = function(answer, **wanted.of(known))
        except Exception as error:
            raise CompileError([_raised(function, error, rollouts, row)]) from error
        if not isinstance(value, Real | np.bool_) or not math.isfinite(value):
            raise CompileError([_no_number(function, value, rollouts, row)])
        made.append(float(value))
    return made


def unfilled(
    function: Verifier, known: Collection[str], called_at: Span | None
) -> Iterator[Diagnostic]:
    """RG0506 for each parameter of a verifier that the columns do not fill."""
    for name in Wanted.by(function).missing(known):
        where = definition_of(function)
        yield Diagnostic(
            "RG0506",
            f"`{name_of(function)}` takes `{name}`, which is no column of the samples",
            called_at or where,
            notes=(
                f"columns: {', '.join(sorted(known))}",
                *((f"`{name_of(function)}` is defined at {where}",) if called_at and where else ()),
            ),
            help=(
                suggest(name, known),
                'rl.dataset(..., truth="…") names the column of the answer',
            ),
        )


def bare(function: Verifier) -> Verifier:
    """The function itself where a reference to it is given."""
    return function.function or function if isinstance(function, FunctionRef) else function


def name_of(function: Verifier) -> str:
    """As messages print it."""
    return getattr(bare(function), "__name__", type(function).__name__)


def definition_of(function: Verifier) -> Span | None:
    """The line with its name; None for a function that is not written in Python."""
    code = getattr(inspect.unwrap(bare(function)), "__code__", None)
    if code is None:
        return None
    file, line = code.co_filename, code.co_firstlineno
    for candidate in range(line, line + 20):  # decorators stand above the name
        source = Span(file, candidate, 1, candidate, 1).source
        column = source.find(code.co_name) + 1
        if column and "def " in source:
            return Span(file, candidate, column, candidate, column + len(code.co_name))
    return Span(file, line, 1, line, len(Span(file, line, 1, line, 1).source) + 1)


def _raised(function: Verifier, error: Exception, rollouts: Rollouts, row: int) -> Diagnostic:
    said = f"{type(error).__name__}: {error}"
    return Diagnostic(
        "RG0507",
        f"`{name_of(function)}` failed on sample {int(rollouts.index[row])}: {said}",
        _line_that_raised(function, error.__traceback__),
        label=said,
        notes=_sample(rollouts, row),
    )


def _no_number(function: Verifier, value: Any, rollouts: Rollouts, row: int) -> Diagnostic:
    return Diagnostic(
        "RG0507",
        f"`{name_of(function)}` returned {_shortened(value)} for sample "
        f"{int(rollouts.index[row])}, which is no finite number",
        definition_of(function),
        notes=_sample(rollouts, row),
        help=("return a float, such as 1.0 for a right answer and 0.0 for a wrong one",),
    )


def _sample(rollouts: Rollouts, row: int) -> tuple[str, str]:
    prompt, answer = rollouts.prompts[row], rollouts.responses[row]
    return f"prompt: {_shortened(prompt)}", f"answer: {_shortened(answer)}"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"


def _line_that_raised(function: Verifier, traceback: TracebackType | None) -> Span | None:
    """The innermost line in the function's own file, else the innermost of all but this one's."""
    where = definition_of(function)
    entries: list[Span] = []
    while traceback is not None:
        entries.append(Span.of_traceback(traceback))
        traceback = traceback.tb_next
    own = [span for span in entries if where is not None and span.file == where.file]
    return (own or entries[1:] or [where])[-1]
