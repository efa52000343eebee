"""What forward and backward passes reach of the hardware: fitted to published training."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.fitted import fitted


@dataclass(frozen=True)
class PassConstants:
    """Constants of passes over packed tokens, on one kind of device.

    Attributes:
        bandwidth: share of the memory bandwidth that copies reach.
        backward: of attention, in forward passes: 2.5 where it is recomputed block by block
            (Dao 2023, FlashAttention-2, section 3.2), 2 where it is kept.
        heads: head width below which attention is bound by its exponentials, of which there is
            one for every so many multiplications (Shah et al. 2024, FlashAttention-3, section 3.2).
    """

    matmul: float = fitted(0.766, 0.4, 0.95, "share of peak that large products reach")
    narrow: float = fitted(0.741, 0.3, 0.95, "the same of products in 8 bits")
    narrowest: float = fitted(0.493, 0.15, 0.95, "the same of products in 4 bits")
    half: float = fitted(342, 0, 4000, "smallest dimension at which products reach half of that")
    attention: float = fitted(0.663, 0.2, 0.85, "share of peak that causal attention reaches")
    traffic: float = fitted(1.57, 0.5, 4, "times that element-wise work moves its operands")
    route: float = fitted(0.262e-3, 0, 3e-3, "seconds that a layer of experts waits for its host")
    expert: float = fitted(82.9e-6, 0, 1e-3, "seconds more of that for each expert of a device")
    beside: float = fitted(0.487, 0, 1, "share of messages beside compute that is waited for")
    power: float = fitted(0.568, 0, 1, "exponent of watts by peak, below an H100's, in rates")
    bandwidth: float = 0.75
    backward: float = 2.5
    heads: int = 128


CPU = PassConstants(
    matmul=0.75,
    narrow=0.75,
    narrowest=0.75,
    half=0.0,
    attention=0.75,
    traffic=0.0,
    route=0.0,
    expert=0.0,
    beside=1.0,
    power=0.0,
    bandwidth=0.5,
    backward=2.0,
    heads=1,
)
"""A processor core that runs one thing after another; nothing is fitted to published rows."""
