"""Seconds and bytes of a table of operations: each is as slow as what it computes or moves."""

from __future__ import annotations

import math

from rlinf_graph.compiler.cost.constants import Constants, engine_traits
from rlinf_graph.compiler.cost.correct import Corrector
from rlinf_graph.compiler.cost.layout import SIZES, Hardware
from rlinf_graph.compiler.cost.memory import moved
from rlinf_graph.compiler.cost.node_cost import PROFILED, NodeCost, items, moving_s
from rlinf_graph.compiler.cost.passes import Parts, added, per_rank, scaled, split_calls
from rlinf_graph.ir.operations import Operation, OperationKind, Operations
from rlinf_graph.ir.plan import NodePlan, Parallel

REACHED: dict[str, dict[OperationKind, float]] = {
    # Shah et al. 2024 (FlashAttention-3), abstract and section 1: FlashAttention-2 reaches 35 % of
    # an H100's peak, optimized products 80 to 90 %.
    "gpu": {"matmul": 0.8, "attention": 0.35, "causal attention": 0.35},
    "cpu": {},
}
"""Share of peak operations by kind of device and class; others reach what whole passes do."""

LAYER_LAUNCHES = 40
"""Launches of a decoder layer, counted by `rl.traced` for Qwen2 of transformers: an engine's host
seconds a layer, divided by this, are those of one launch."""

INDEX_BYTES = 8
"""Of an element's place, which a sort moves with its key."""


def cost(
    work: Operations,
    settings: NodePlan,
    hardware: Hardware,
    constants: Constants,
    correct: Corrector,
) -> NodeCost:
    """The cost of a module that was captured; of what was not, an assumption is part of it."""
    parts = correct("chunk", chunk(work, settings, hardware, constants))
    parts = scaled(parts, settings.chunks)
    held = resident(work)
    moving = moving_s(moved(held), hardware, constants)
    assumed = "declared default" if work.gaps else "roofline"
    return NodeCost(
        seconds=sum(parts.values()),
        parts=items(parts),
        resident=items(held),
        working=items(working(work, settings, constants)),
        load_s=moving,
        offload_s=moving,
        origin=PROFILED if correct.covers("chunk") else assumed,
        width=correct.width(("chunk",), parts, constants.widths.passes),
    )


def chunk(work: Operations, settings: NodePlan, hardware: Hardware, constants: Constants) -> Parts:
    """Seconds by cause of one of the chunks of a node.

    A rank makes calls of `work.batch` samples, the last one with the rest.
    """
    mine = per_rank(work.samples, settings.chunks * settings.parallel.dp)
    calls, rest = split_calls(mine, work.batch)
    whole = scaled(_call(work, 1.0, hardware, constants), calls)
    last = _call(work, rest / work.batch, hardware, constants) if rest else {}
    return added(whole, last)


def resident(work: Operations) -> Parts:
    """Bytes that stay between uses, by what they hold."""
    return {"weights": work.parameters, "gradients": work.gradients}


def working(work: Operations, settings: NodePlan, constants: Constants) -> Parts:
    """Bytes only while a call runs, by what they hold."""
    mine = per_rank(work.samples, settings.chunks * settings.parallel.dp)
    share = min(1.0, mine / work.batch)
    return {"activations": work.live * share, "buffers": constants.process}


def refusal(devices: int, parallel: Parallel) -> str | None:
    """Why a layout cannot run, in words: a module of unknown make is replicated only."""
    if parallel.devices != devices:
        return f"{parallel} takes {parallel.devices} devices, given {devices}"
    if parallel.dp != parallel.devices or parallel.shard != "none":
        return f"{parallel}, but what is traced can only be replicated (dp)"
    return None


def _call(work: Operations, share: float, hardware: Hardware, constants: Constants) -> Parts:
    """Seconds by cause of one call with `share` of its samples.

    The roofline of each operation (Williams et al. 2009); where the host runs ahead, launches count
    as far as they take longer than what they launch.
    """
    launch = engine_traits("torch", hardware.kind).layer_s / LAYER_LAUNCHES
    parts: Parts = {}
    for made in work.table:
        seconds = share * made.count * _seconds(made, hardware, constants)
        parts[made.kind] = parts.get(made.kind, 0.0) + seconds
    busy = sum(parts.values())
    issued = launch * work.launches
    parts["launch"] = max(0.0, issued - busy) if constants.overlap else issued
    if work.gaps:
        known = sum(parts.values()) / work.launches if work.launches else 0.0
        parts["not captured"] = _unknown(work, share, max(known, launch), hardware, constants)
    return parts


def _unknown(
    work: Operations, share: float, launch: float, hardware: Hardware, constants: Constants
) -> float:
    """What could not be captured: launches that take as long as the known ones, never nothing.

    Weights that were not reached take at least the seconds of their operations.
    """
    peak = _peak(work.weight_dtype, "matmul", hardware, constants)
    return sum(max(gap.hidden * launch, share * gap.flops / peak) for gap in work.gaps)


def _seconds(made: Operation, hardware: Hardware, constants: Constants) -> float:
    """Of one launch on the device: operations or bytes, whichever takes longer."""
    flops, moved = made.flops, made.read + made.written
    if made.kind == "causal attention":
        flops /= 2  # kernels leave out what is masked
    if made.kind == "sort":
        moved = max(moved, _sorted(made, hardware.kind))
    reached = hardware.memory_bandwidth * constants.decoding.bandwidth
    return max(flops / _peak(made.dtype, made.kind, hardware, constants), moved / reached)


def _peak(dtype: str, kind: OperationKind, hardware: Hardware, constants: Constants) -> float:
    """Operations a second that are reached in a number format."""
    figures = dict(hardware.flops)
    peak = figures.get(dtype) or figures.get("bfloat16" if dtype == "float16" else "float32")
    share = REACHED[hardware.kind].get(kind, constants.passes.matmul)
    return (peak or figures["float32"]) * share


def _sorted(made: Operation, kind: str) -> float:
    """Bytes that a sort reads and writes: keys with their indices, in each of its passes.

    A radix sort on GPUs makes one for each byte of a key (Adinets and Merrill 2022), a merge sort
    on processors one for each doubling of what is in order.
    """
    shape = made.shapes[0] if made.shapes else ()
    key = SIZES.get(made.dtype, INDEX_BYTES)
    passes = key if kind == "gpu" else math.log2(max(2, shape[-1] if shape else 1))
    return 2 * math.prod(shape) * (key + INDEX_BYTES) * passes
