"""Environments as the user names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import EnvDef
from rlinf_graph.ir.span import Span, caller
from rlinf_graph.ir.value import freeze


@dataclass(frozen=True, eq=False)
class Env:
    """A register of environments that go on from step to step and from iteration to iteration.

    Args:
        path: what the engine calls it, such as `CartPole-v1`, or a function that makes one.
        count: copies, each with a seed of its own.
        name: what explain calls it; by default the variable it is bound to.
        options: keywords for making one.
        normalize: shift and scale observations by their running mean and deviation. Results then
            depend on the order in which copies are stepped, which the number of groups decides.
        engine: makes and steps the copies.
    """

    path: str | Callable[[], Any]
    count: int = 1
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    normalize: bool = False
    engine: str = "gymnasium"
    span: Span = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Remember where it was declared, and refuse what no environment can be.

        Raises:
            CompileError: RG0104, for a value that the parameter does not take.
        """
        span = Span.of_frame(caller(2))
        object.__setattr__(self, "span", span)
        if not (callable(self.path) or (isinstance(self.path, str) and self.path)):  # pyright: ignore[reportUnnecessaryIsInstance]  users may not run a checker
            message = f"an environment's path is a name or a function, not {self.path!r}"
            help_text = ('rl.Env("CartPole-v1"), or rl.Env(make) with a function `make`',)
            raise fail("RG0104", message, span.argument("path", FIELDS), help=help_text)
        if not isinstance(self.count, int) or self.count < 1:  # pyright: ignore[reportUnnecessaryIsInstance]  users may not run a checker
            message = f"`count` of an environment is {self.count!r}; it has to be at least 1"
            raise fail("RG0104", message, span.argument("count", FIELDS))


FIELDS = ("path", "count", "name", "options", "normalize", "engine")


def define_env(env: Env, name: str) -> EnvDef:
    """The environment as the graph has it."""
    options = tuple((key, freeze(value)) for key, value in env.options.items())
    return EnvDef(
        name=name,
        path=freeze(env.path),
        count=env.count,
        engine=env.engine,
        options=options,
        normalize=env.normalize,
        span=env.span,
    )
