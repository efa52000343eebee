"""Number formats of a model that is served: bytes of its elements, and what its products run in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlinf_graph.compiler.cost.formats import FORMATS as STORED

PEAKS = {"float4": ("float4", "bfloat16"), "float8": ("float8", "bfloat16")}
"""Formats of products that a device may lack: then weights are unpacked, and bfloat16 is used."""


@dataclass(frozen=True)
class Formats:
    """Bytes of an element, scales included, and formats of products.

    Attributes:
        attention: bytes of a weight of attention and of recurrent layers.
        feed_forward: of dense feed-forward layers and of experts.
        ends: of embedding and head.
        cache: of keys, values and latents.
        attention_product: what the projections of attention are multiplied in.
        feed_forward_product: what feed-forward layers are multiplied in.
        cache_product: what decoding multiplies queries, keys and values in.
    """

    attention: float
    feed_forward: float
    ends: float
    cache: float
    attention_product: str
    feed_forward_product: str
    cache_product: str

    @classmethod
    def plain(cls, dtype: str, size: float) -> Formats:
        """Everything in one format."""
        return cls(size, size, size, size, dtype, dtype, dtype)


NVFP4, MXFP4 = (STORED[name].bytes for name in ("nvfp4", "mxfp4"))
"""Bytes of a weight, scales included."""

FORMATS: Mapping[str, Formats] = {
    "float64": Formats.plain("float64", 8),
    "float32": Formats.plain("float32", 4),
    "bfloat16": Formats.plain("bfloat16", 2),
    "float16": Formats.plain("float16", 2),
    # Checkpoints in 8 and 4 bits leave embedding and head in bfloat16.
    "float8": Formats(1, 1, 2, 1, "float8", "float8", "float8"),
    "nvfp4": Formats(NVFP4, NVFP4, 2, 1, "float4", "float4", "float8"),
    # Experts alone; the cache stays in bfloat16.
    "mxfp4": Formats(2, MXFP4, 2, 2, "bfloat16", "float4", "bfloat16"),
}


def formats_of(dtype: str) -> Formats:
    """The formats of a model by the name of its weights' format."""
    return FORMATS[dtype]


def made_in(flops: tuple[tuple[str, float], ...], product: str) -> tuple[str, float]:
    """The format that a device multiplies in when asked for one, and its operations a second."""
    figures = dict(flops)
    for name in PEAKS.get(product, (product,)):
        if name in figures:
            return name, figures[name]
    return "float32", figures["float32"]
