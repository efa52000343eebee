"""What forward and backward passes reach of the hardware: fitted to published training."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.fitted import fitted


@dataclass(frozen=True)
class PassConstants:
    """Constants of passes over packed tokens, on one kind of device.

    Attributes:
        backward: of attention, in forward passes: 2.5 where it is recomputed block by block
            (Dao 2023, FlashAttention-2, section 3.2), 2 where it is kept.
    """

    matmul: float = fitted(0.75, 0.4, 0.95, "share of peak operations that large products reach")
    narrow: float = fitted(0.65, 0.3, 0.95, "the same of products in 8 bits")
    narrowest: float = fitted(0.5, 0.15, 0.95, "the same of products in 4 bits")
    half: float = fitted(500, 0, 4000, "smallest dimension at which products reach half of that")
    attention: float = fitted(0.5, 0.2, 0.85, "share of peak that causal attention reaches")
    traffic: float = fitted(1.5, 0.5, 4, "times that element-wise work moves its operands")
    stall: float = fitted(0.1e-3, 0, 1e-3, "seconds that each expert of a rank adds to a pass")
    route: float = fitted(0.1e-3, 0, 3e-3, "seconds that a layer of experts adds to a pass")
    beside: float = fitted(0.3, 0, 1, "share of messages beside compute that is waited for")
    power: float = fitted(0.5, 0, 1, "how far rates follow the watts of a device by its peak")
    backward: float = 2.5
