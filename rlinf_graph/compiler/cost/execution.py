"""How an engine runs the passes of a layer: number formats, graphs, fusion, messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BLOCKS = {"mxfp8": "float8", "nvfp4": "float4"}
"""Block-scaled formats by the format whose peak their products have."""

BYTES = {"float8": 1.0, "float4": 0.5}
"""Of an element that a product reads in a format narrower than the weights'."""


@dataclass(frozen=True)
class Execution:
    """What an engine does to run passes fast; the defaults are those of plain training.

    Attributes:
        product: number format of the products of layers, such as `mxfp8`; empty for that of the
            weights. Head, attention and element-wise work keep the weights' format.
        graphs: share of a pass's launches that CUDA graphs replay, so that no host issues them.
        fused: whether element-wise operations that follow one another are one kernel.
        fused_experts: whether activation and conversions are part of the experts' products.
        dispatch: how tokens reach their experts: `copies` are sorted, sent once for each expert and
            sorted again (a plain all-to-all); `once` for each device that has any of them, and
            copied there (DeepEP); `fused` the same with the copying part of it (HybridEP).
        tensor_beside: whether tensor-parallel messages are cut up and sent beside products.
        experts_beside: whether the exchanges of one micro-batch are sent beside another's work.
        kernels: rate of attention in that of kernels written for the device: FlashAttention-2
            reaches 35 % of an H100's peak where FlashAttention-3 reaches 75 % (Shah et al. 2024).
        balance: tokens of the busiest expert rank, in those of the mean.
    """

    product: str = ""
    graphs: float = 0.0
    fused: bool = True
    fused_experts: bool = False
    dispatch: Literal["copies", "once", "fused"] = "once"
    tensor_beside: bool = True
    experts_beside: bool = False
    kernels: float = 1.0
    balance: float = 1.0

    @property
    def product_format(self) -> str:
        """The format whose peak the products have; empty for that of the weights."""
        return BLOCKS.get(self.product, self.product)


PLAIN = Execution()

EXECUTIONS = {"torch": Execution(fused=False, tensor_beside=False, dispatch="copies")}
"""Of the engines that run operators one by one; `PLAIN` for others."""
