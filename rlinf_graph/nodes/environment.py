"""What a node asks of environments. Engines implement this; nothing here knows one."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from rlinf_graph.ir.batches import Actions, Observations, Transitions
from rlinf_graph.ir.diagnostic import fail, suggest
from rlinf_graph.ir.graph import EnvDef, Space

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Environments(Protocol):
    """Copies of an environment in one process, numbered from 0 and stepped in groups."""

    def reset(self) -> Observations:
        """Begin a new episode in every copy. A copy's seed depends on the run's and its number."""
        ...

    def step(
        self, observations: Observations, actions: Actions
    ) -> tuple[Observations, Transitions]:
        """Take one step in the copies that `actions` names: one group of them, or all.

        An episode that ends is followed by a new one at once: the observations returned are its
        first, and a truncated episode's last one is kept in `Transitions.finals`.

        Args:
            observations: in which the actions were chosen.
            actions: one for each copy of the group.
        """
        ...

    def play(self, act: Callable[[Observations], Actions], episodes: int) -> Tensor:
        """Returns of so many episodes of an evaluation, which leaves the copies as they are.

        Episodes start in copies of their own, with seeds of their own; running moments of
        observations are used and not moved on.
        """
        ...

    def close(self) -> None:
        """End what the copies hold."""
        ...


class EnvironmentsClass(Protocol):
    """Makes environments."""

    def __call__(self, env: EnvDef, *, seed: int, groups: int) -> Environments:
        """Make the copies, in `groups` of equal size."""
        ...

    @staticmethod
    def spaces(env: EnvDef) -> tuple[Space, Space]:
        """What one observation and one action are.

        Raises:
            CompileError: RG0510, for an environment that cannot be made, or whose spaces no batch
                can hold.
        """
        ...


def environments_class(name: str) -> EnvironmentsClass:
    """The engine registered under a name (entry points of group `rlinf_graph.environments`).

    Raises:
        CompileError: RG0503, for a name that nothing registered, or whose package is missing.
    """
    known = {point.name: point for point in entry_points(group="rlinf_graph.environments")}
    if name not in known:
        message = f"there is no engine `{name}` for environments"
        raise fail("RG0503", message, help=(suggest(name, known),))
    try:
        return known[name].load()
    except ImportError as error:
        message = f"environments of `{name}` cannot be made: {error}"
        help_text = ('pip install "rlinf-graph[env]"',)
        raise fail("RG0503", message, help=help_text) from error
