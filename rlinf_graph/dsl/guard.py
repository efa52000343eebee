"""Functions that users give to `@rl.node`: what goes wrong in them becomes a diagnostic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from rlinf_graph.ir.diagnostic import CompileError, Diagnostic, fail
from rlinf_graph.ir.span import Span
from rlinf_graph.ir.work import Volume, Work

RESULTS: dict[str, Any] = {"work": Work | None, "volume": Volume, "check": Diagnostic}
HINTS = {
    "work": "rl.HostWork, rl.Forward, rl.Generate, rl.Train or rl.traced(...)",
    "volume": "a tuple with an rl.Volume for each output",
    "check": "an iterable of rl.Diagnostic",
}


def guarded(name: str, what: str, function: Callable[..., Any] | None) -> Any:
    """`function`, the `work`, `volume` or `check` of node `name`.

    Raises, when it is called:
        CompileError: RG0509, for an exception and for a result of another type.
    """
    if function is None:
        return None

    def call(*arguments: Any) -> Any:
        try:
            made: Any = _gathered(what, function(*arguments))
        except CompileError:
            raise
        except Exception as error:
            message = f"`{what}` of node `{name}` raised {type(error).__name__}: {error}"
            raise fail("RG0509", message, _raised_at(error), label="raised here") from error
        items = cast("tuple[Any, ...]", made if isinstance(made, tuple) else (made,))
        if not all(isinstance(item, RESULTS[what]) for item in items):
            message = f"`{what}` of node `{name}` returned {made!r:.80}"
            raise fail("RG0509", message, help=(f"return {HINTS[what]}",))
        return cast("Any", made)

    return call


def _gathered(what: str, made: Any) -> Any:
    """A check yields its findings: running it belongs to the call."""
    return tuple(cast("Iterable[Any]", made)) if what != "work" and _iterable(made) else made


def _iterable(value: Any) -> bool:
    return isinstance(value, Iterable)


def _raised_at(error: Exception) -> Span | None:
    traceback, span = error.__traceback__, None
    while traceback is not None:
        span = Span.of_traceback(traceback)
        traceback = traceback.tb_next
    return span
