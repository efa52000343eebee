"""The engines that are known by name, and what a backend tells one when it makes it.

What an engine can do is read from the module `capabilities` beside the module that defines it, so
that nothing of what it needs is imported.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from rlinf_graph.ir.diagnostic import fail, suggest
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.capabilities import Capabilities

if TYPE_CHECKING:
    from rlinf_graph.ir.plan import NodePlan
    from rlinf_graph.nodes.engine import Engine

GROUP = "rlinf_graph.engines"
"""The entry points by which installed packages add engines: a name, and `package.module:Class`."""

BUILT_IN = {
    "torch": "rlinf_graph.engines.torch.engine:TorchEngine",
    "vllm": "rlinf_graph.engines.vllm.engine:VllmEngine",
    "megatron": "rlinf_graph.engines.megatron.engine:MegatronEngine",
}
"""The engines that come with this package; known too where only its files are there."""


@dataclass(frozen=True)
class Member:
    """One process of those that hold a model together.

    Processes are numbered with the axis tp fastest, then cp, then pp, then dp (Megatron's order
    `tp-cp-ep-pp-dp`); that number is RANK of torch's environment, which is set, and WORLD_SIZE is
    that of all axes. Devices of a node are in the same order.

    Attributes:
        rank: its number.
        settings: of the node: layout, recomputation, micro-batch. For engines whose replicas do not
            know each other, dp is 1.
    """

    rank: int
    settings: NodePlan

    @property
    def tp(self) -> int:
        """Its number along the axis tp."""
        return self.rank % self.settings.parallel.tp

    @property
    def cp(self) -> int:
        """Its number along the axis cp."""
        return self.rank // self.settings.parallel.tp % self.settings.parallel.cp

    @property
    def pp(self) -> int:
        """Its number along the axis pp."""
        parallel = self.settings.parallel
        return self.rank // (parallel.tp * parallel.cp) % parallel.pp

    @property
    def dp(self) -> int:
        """Its number along the axis dp."""
        parallel = self.settings.parallel
        return self.rank // (parallel.tp * parallel.cp * parallel.pp)


class EngineClass(Protocol):
    """Makes engines."""

    capabilities: Capabilities

    def __call__(
        self,
        model: ModelDef,
        *,
        seed: int,
        device: str,
        dtype: str,
        trainable: bool,
        member: Member | None = None,
    ) -> Engine:
        """Load a model.

        Args:
            model: its `path` is a hub name or a folder. Random weights depend on the seed and the
                model's name only; an engine that is `hosted` gets a folder in their stead.
            seed: of the run.
            device: `cuda:0`, `cpu`, as in torch.
            dtype: as in `rl.Model`; never `auto` for an engine that is `hosted`.
            trainable: whether gradients and optimizer states may be asked for.
            member: which process this is, where the engine is `hosted`.

        Raises:
            CompileError: RG0503, for a model or a device that is not there or does not fit.
        """
        ...


def engine_names() -> list[str]:
    """The engines that are known, whether what they need is installed or not."""
    return sorted(_known())


@cache
def capabilities_of(name: str) -> Capabilities:
    """What an engine can do, as `CAPABILITIES` of the module `capabilities` beside it says.

    Raises:
        CompileError: RG0503, for a name that is not known.
    """
    module = _reference(name).partition(":")[0]
    beside = f"{module.rpartition('.')[0]}.capabilities"
    return importlib.import_module(beside).CAPABILITIES


def engine_class(name: str) -> EngineClass:
    """The engine of a name, imported.

    Raises:
        CompileError: RG0503, for a name that is not known, and for one that cannot be imported.
    """
    module, _, attribute = _reference(name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        helps = {s.install for s in capabilities_of(name).kinds.values() if s.install}
        message = f"the engine `{name}` cannot be imported: {error}"
        raise fail("RG0503", message, help=tuple(sorted(helps))) from error


def _reference(name: str) -> str:
    known = _known()
    if name not in known:
        raise fail("RG0503", f"there is no engine `{name}`", help=(suggest(name, known),))
    return known[name]


def _known() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)} | BUILT_IN
