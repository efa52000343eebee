"""How an engine runs a layer's passes: number formats, graphs, fusion, overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FORMATS = {"mxfp8": "float8", "nvfp4": "float4"}
"""Block-scaled formats by the format whose peak their products have."""

NARROW = {"float8": 1.0, "float4": 0.5}
"""Bytes of an element that products read in a format narrower than the weights'."""


@dataclass(frozen=True)
class Execution:
    """What an engine does to run passes fast; the defaults are those of plain bfloat16 training.

    Attributes:
        product: number format of the products of layers, such as `mxfp8`; empty for that of the
            weights. Head, attention and element-wise work keep the weights' format.
        graphs: share of a pass's launches that CUDA graphs replay, so that no host issues them.
        fused: whether element-wise operations that follow one another are one kernel, as a
            compiler or hand-written layers have it.
        tensor_beside: whether tensor-parallel messages are sent beside products.
        experts_beside: whether the exchanges of one micro-batch are sent beside the work of another.
        dispatch: how tokens reach their experts: `copies` are sorted, sent once for each expert and
            sorted again (a plain all-to-all); `once` for each device that has any of them, and
            copied there (DeepEP); `fused` the same with the copying part of it (HybridEP).
        fused_experts: whether activation and casts are part of the experts' products.
        kernels: rate of attention in that of kernels written for the device: FlashAttention-2
            reaches 35 % of an H100's peak where FlashAttention-3 reaches 75 % (Shah et al. 2024).
        balance: tokens of the busiest expert rank, in those of the mean.
    """

    product: str = ""
    graphs: float = 0.0
    fused: bool = True
    tensor_beside: bool = True
    experts_beside: bool = False
    dispatch: Literal["copies", "once", "fused"] = "once"
    fused_experts: bool = False
    kernels: float = 1.0
    balance: float = 1.0

    def peak_format(self, dtype: str) -> str:
        """The format by which hardware is asked for the peak of products."""
        return FORMATS.get(self.product, self.product) or dtype


PLAIN = Execution()
