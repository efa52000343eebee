"""The work of any module as a table of operations, each with what it computes and moves.

`rl.traced` makes it by running the module on tensors without storage; nothing of this needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

OperationKind = Literal[
    "matmul",
    "attention",
    "causal attention",
    "convolution",
    "element-wise",
    "reduction",
    "gather/scatter",
    "sort",
    "copy",
    "other",
]


@dataclass(frozen=True)
class Operation:
    """Equal launches of one operator.

    Attributes:
        kind: its class; operators of a class reach similar shares of the hardware.
        name: such as `aten.addmm`.
        shapes: of its tensors, inputs first in their order.
        dtype: number format it computes in.
        flops: of one launch; a multiplication and an addition are two. Only products, attention and
            convolutions count; causal attention counts the full square, as torch does.
        read, written: bytes of one launch.
        count: launches.
    """

    kind: OperationKind
    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    flops: float
    read: float
    written: float
    count: int = 1


@dataclass(frozen=True)
class Gap:
    """What could not be captured, and so has to be measured.

    Attributes:
        what: the operator or function.
        module: path of the module that called it; empty for the outermost.
        where: `file:line` of the user's code; empty where torch called it itself.
        reason: why.
        hidden: launches that are not known because of it, at least.
        flops: of what is not known, by its weights; 0 where it has none.
    """

    what: str
    module: str
    where: str
    reason: str
    hidden: int = 1
    flops: float = 0.0

    def __str__(self) -> str:
        """In a few words."""
        inside = f" in `{self.module}`" if self.module else ""
        place = f" at {self.where}" if self.where else ""
        return f"{self.what}{inside}{place}: {self.reason}"


@dataclass(frozen=True)
class Operations:
    """`samples` in an iteration go through a module, `batch` in a call.

    Attributes:
        samples: of all devices together.
        batch: samples of the call that the table is of.
        table: the operations of one call.
        parameters: bytes of the weights and buffers.
        gradients: bytes of their gradients; 0 for a forward pass alone.
        live: bytes of all other tensors at once, at most.
        weight_dtype: number format of most weights; of the inputs where there are none.
        gaps: what the table lacks.
    """

    samples: int
    batch: int
    table: tuple[Operation, ...]
    parameters: float = 0.0
    gradients: float = 0.0
    live: float = 0.0
    weight_dtype: str = "float32"
    gaps: tuple[Gap, ...] = ()

    @cached_property
    def flops(self) -> float:
        """Operations of one call that are known."""
        return sum(made.flops * made.count for made in self.table)

    @cached_property
    def moved(self) -> float:
        """Bytes that one call reads and writes, as far as known."""
        return sum((made.read + made.written) * made.count for made in self.table)

    @cached_property
    def launches(self) -> int:
        """Launches of one call that are known."""
        return sum(made.count for made in self.table)

    @cached_property
    def known(self) -> float:
        """Share of the launches of one call that is known, at most; 1 without gaps."""
        hidden = sum(gap.hidden for gap in self.gaps)
        return self.launches / (self.launches + hidden) if hidden else 1.0
