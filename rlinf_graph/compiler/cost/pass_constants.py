"""What forward and backward passes reach of the hardware: fitted to published training."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.fitted import fitted


@dataclass(frozen=True)
class PassConstants:
    """Constants of passes over packed tokens, on one kind of device."""

    matmul: float = fitted(0.40, 0.2, 0.9, "share of peak operations that large products reach")
