"""What prefill and decode steps reach of the hardware: fitted to published inference."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.fitted import fitted


@dataclass(frozen=True)
class DecodeConstants:
    """Constants of sampling, on one kind of device.

    Attributes:
        attention: of what other products reach, the share that attention reaches when decoding:
            a few query heads share a key (Shah et al. 2024, FlashAttention-3, section 4, against
            cuBLAS: about 0.6 for prompts, of which decoding has no more).
        moves: times that the parts of a layer without products (norms, residuals, rotations,
            conversions) move a token's hidden state through memory; half as often for each
            expert that it visits.
        blend: exponent of the mean in which compute and memory, and device and host, come
            together. Infinity is the plain roofline; at 3, equal sides cost a quarter more than
            one alone, as they never overlap for the whole of a step.
        apart: whether compute and memory are compared operator by operator, or in total.
    """

    bandwidth: float = fitted(0.927, 0.4, 0.95, "share of the memory bandwidth that is reached")
    matmul: float = fitted(0.595, 0.2, 0.9, "share of peak operations that large products reach")
    float4: float = fitted(0.642, 0.2, 1.0, "of that share, what products in 4 bits reach")
    grouped: float = fitted(0.339, 0.1, 1.0, "of that share, what products of experts reach")
    rows: float = fitted(8.77, 0.0, 300.0, "rows at which a product takes twice its weights' time")
    floor: float = fitted(90.4e-6, 0.0, 300e-6, "seconds of a layer's kernels besides their work")
    launch: float = fitted(504e-6, 0.0, 2e-3, "host seconds to issue a layer without a graph")
    sequence: float = fitted(12.5e-6, 0.0, 100e-6, "host seconds of a step for each sequence in it")
    grace: float = fitted(1.56, 1.0, 3.0, "host time on Grace processors by that on x86")
    imbalance: float = fitted(0.439, 0.0, 2.0, "time of experts that waits for the busiest rank")
    attention: float = 0.6
    moves: float = 12.0
    blend: float = 3.0
    apart: bool = True


PLAIN_ROOFLINE = DecodeConstants(
    float4=1.0,
    grouped=1.0,
    rows=0.0,
    floor=0.0,
    launch=0.0,
    sequence=0.0,
    grace=1.0,
    imbalance=0.0,
    attention=1.0,
    moves=0.0,
    blend=float("inf"),
    apart=False,
)
"""Shares of peak and bandwidth alone, for processors, whose engines were measured against it."""
