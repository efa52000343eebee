"""What prefill and decode steps reach of the hardware: fitted to published inference."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.fitted import fitted


@dataclass(frozen=True)
class DecodeConstants:
    """Constants of sampling, on one kind of device."""

    bandwidth: float = fitted(0.75, 0.4, 0.95, "share of the memory bandwidth that is reached")
