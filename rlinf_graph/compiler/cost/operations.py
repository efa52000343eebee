"""Seconds and bytes of a table of operations: each is as slow as what it computes or moves."""

from __future__ import annotations

import math

from rlinf_graph.compiler.cost.constants import Constants
from rlinf_graph.compiler.cost.correct import Corrector
from rlinf_graph.compiler.cost.formats import FORMATS, peak
from rlinf_graph.compiler.cost.layout import SIZES, Hardware
from rlinf_graph.compiler.cost.memory import moved
from rlinf_graph.compiler.cost.node_cost import PROFILED, NodeCost, items, moving_s
from rlinf_graph.compiler.cost.passes import H100, Parts, added, per_rank, scaled, split_calls
from rlinf_graph.ir.operations import Operation, Operations
from rlinf_graph.ir.plan import NodePlan, Parallel

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
    launch = constants.engines["torch"].layer_s / LAYER_LAUNCHES
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
    rate = _peak(work.weight_dtype, hardware, constants) * constants.passes.matmul
    return sum(max(gap.hidden * launch, share * gap.flops / rate) for gap in work.gaps)


def _seconds(made: Operation, hardware: Hardware, constants: Constants) -> float:
    """Of one launch on the device: operations or bytes, whichever takes longer."""
    reached, moved = constants.passes, made.read + made.written
    if made.kind == "sort":
        moved = max(moved, _sorted(made, hardware.kind))
    flops, share = made.flops * (1 + reached.half / _width(made)), reached.matmul
    if "attention" in made.kind:
        causal = 0.5 if made.kind == "causal attention" else 1.0  # kernels leave out what is masked
        heads = max(1.0, reached.heads / made.shapes[0][-1])
        flops, share = causal * heads * made.flops, reached.attention
    computing = flops / (_peak(made.dtype, hardware, constants) * share)
    return max(computing, moved / (hardware.memory_bandwidth * reached.bandwidth))


def _width(made: Operation) -> float:
    """The smallest dimension of a product; of a convolution as one, without its images."""
    if made.kind == "matmul" and len(made.shapes) > 1:
        left, right = made.shapes[-2:]
        return max(1, min(*left[-2:], right[-1]))
    if made.kind == "convolution":
        weights = [shape for shape in made.shapes[1:] if len(shape) > 2]  # behind what it is for
        return max(1, min(weights[-1][0], math.prod(weights[-1][1:]))) if weights else math.inf
    return math.inf


def _peak(dtype: str, hardware: Hardware, constants: Constants) -> float:
    """Operations a second in a number format, as far as power allows; see `passes`."""
    figures = dict(hardware.flops)
    plain = peak(figures, dtype if dtype in FORMATS else "float32")
    if not hardware.power:
        return plain
    return plain * min(1.0, hardware.power / plain / H100) ** constants.passes.power


def _sorted(made: Operation, kind: str) -> float:
    """Bytes that a sort reads and writes: keys with their indices, in each of its passes.

    A radix sort on GPUs makes one for each byte of a key (Adinets and Merrill 2022), a merge sort
    on processors one for each doubling of what is in order.
    """
    shape = made.shapes[0] if made.shapes else ()
    key = SIZES.get(made.dtype, INDEX_BYTES)
    passes = key if kind == "gpu" else math.log2(max(2, shape[-1] if shape else 1))
    return 2 * math.prod(shape) * (key + INDEX_BYTES) * passes
