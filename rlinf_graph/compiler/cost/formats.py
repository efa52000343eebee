"""Number formats: the bytes of a weight, and which peak of a device multiplies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rlinf_graph.compiler.cost.shapes import ModelShape

Scope = Literal["all", "matrices", "experts"]


@dataclass(frozen=True)
class Format:
    """How weights are stored.

    Attributes:
        bytes: of a weight, shared scales included.
        peaks: formats in which a device may multiply it, the fastest first. Where it has no units
            for the format itself, weights are widened as they are read.
        scope: what is stored so: every weight, the matrices of the layers, or of these the
            experts' alone where there are any. The rest is in bfloat16.
    """

    bytes: float
    peaks: tuple[str, ...]
    scope: Scope = "all"


FORMATS: Mapping[str, Format] = {
    "float64": Format(8, ("float64",)),
    "float32": Format(4, ("float32",)),
    "bfloat16": Format(2, ("bfloat16",)),
    "float16": Format(2, ("float16", "bfloat16")),
    # A scale for a block of 128 x 128 weights, as DeepSeek-V3 has it, is 0.02 % and left out.
    "float8": Format(1, ("float8", "bfloat16"), "matrices"),
    # OCP Microscaling Formats 1.0, section 5: 4 bits, and an 8-bit scale for 32 of them.
    "mxfp4": Format(4.25 / 8, ("float4", "bfloat16"), "experts"),
    # NVIDIA's: 4 bits, and an 8-bit scale for 16 of them.
    "nvfp4": Format(4.5 / 8, ("float4", "bfloat16"), "matrices"),
}

WIDE = FORMATS["bfloat16"]


def peak(flops: Mapping[str, float], dtype: str) -> float:
    """Operations a second of a device in a format, of the peaks that its maker publishes.

    Args:
        flops: peaks by format; float32's is there.
        dtype: of the weights, a key of `FORMATS`.
    """
    return next((flops[name] for name in FORMATS[dtype].peaks if name in flops), flops["float32"])


def weight_bytes(shape: ModelShape, head: str, dtype: str) -> float:
    """Bytes of all weights of a model."""
    form, total = FORMATS[dtype], shape.parameters(head)
    if form.scope == "all":
        return total * form.bytes
    short = shape.expert_matrices
    if form.scope == "matrices" or not short:
        short += shape.dense_matrices
    return short * form.bytes + (total - short) * WIDE.bytes
