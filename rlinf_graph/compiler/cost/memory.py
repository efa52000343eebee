"""Bytes of one device by what they hold: those that stay, and those only while a node runs."""

from __future__ import annotations

import math

from rlinf_graph.compiler.cost.constants import PACKED_TOKENS
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.rollout import Rollout
from rlinf_graph.compiler.cost.training import (
    gradient_bytes,
    micro_batch_of,
    optimizer_bytes,
    samples_per_step,
)
from rlinf_graph.ir.work import Forward, Lengths, Train

Bytes = dict[str, float]
"""Bytes by what they hold."""


def resident(layout: Layout, trained: bool) -> Bytes:
    """What stays between uses.

    A trained bfloat16 weight takes 18 bytes: 2 itself, 4 its gradient, which adds up in float32,
    12 the float32 master copy and AdamW's two moments. (torchtitan's published peaks of
    Llama-3.1-8B at FSDP 8 and 128 differ by 17.1 to 17.6 bytes a weight.) A float32 weight takes
    16: 4, 4 and 8.
    """
    held = layout.held_weights
    parts: Bytes = {"weights": held * layout.element}
    if trained:
        parts["gradients"] = held * gradient_bytes(layout)
        master = " and master" if layout.element < 4 else ""
        parts[f"optimizer{master}"] = held * optimizer_bytes(layout)
    return parts


def moved(parts: Bytes) -> float:
    """Bytes that loading or offloading moves: gradients are not needed between iterations."""
    return sum(size for name, size in parts.items() if name != "gradients")


def rollout_working(rollout: Rollout) -> Bytes:
    """Only while sampling."""
    layout = rollout.layout
    tokens = rollout.prompts * rollout.work.prompt_tokens
    if layout.traits.paged:
        tokens = min(PACKED_TOKENS, tokens)
    return {
        "kv cache": rollout.cache_bytes,
        "logits": rollout.slots * rollout.logits_bytes,
        "activations": _layer_bytes(layout, tokens, kept=False),
        "buffers": layout.constants.process,
    }


def pass_working(layout: Layout, work: Forward | Train) -> Bytes:
    """Only while a forward node or training runs."""
    trained = isinstance(work, Train)
    samples = samples_per_step(work) if trained else work.samples / layout.settings.chunks
    mine = math.ceil(samples / layout.parallel.dp)
    together = min(mine, micro_batch_of(layout, work.lengths))
    tokens = peak_tokens(together, work.lengths)
    if trained and not layout.traits.packs:
        tokens = together * work.lengths.longest
    tokens /= layout.parallel.cp
    if trained:
        activations = _training_activations(layout, tokens)
    else:
        activations = _layer_bytes(layout, tokens, kept=False)
    return {
        "activations": activations,
        "logits": _logits(layout, tokens, trained),
        "buffers": layout.constants.process + _gathered(layout),
    }


def peak_tokens(samples: int, lengths: Lengths) -> float:
    """Tokens of a large micro-batch: the mean and three deviations, at most all at the longest."""
    mean = lengths.mean
    variance = sum((q - mean) ** 2 for q in lengths.quantiles) / len(lengths.quantiles)
    likely = samples * mean + 3 * math.sqrt(samples * variance)
    return min(samples * lengths.longest, likely)


def _training_activations(layout: Layout, tokens: float) -> float:
    """Of all layers of a stage; a pipeline keeps as many micro-batches as it has stages."""
    layers = layout.shape.layers * layout.stage
    one = _layer_bytes(layout, tokens, kept=True)
    if not layout.settings.recompute:
        return layers * one * layout.parallel.pp
    inputs = tokens * layout.shape.hidden * layout.element
    return layers * inputs * layout.parallel.pp + one


def _layer_bytes(layout: Layout, tokens: float, kept: bool) -> float:
    """Activations of one layer, with attention that never stores its square.

    Kept for the backward pass: the inputs of two norms and their float32 copies, the normalized
    inputs of two products, queries, keys and values before and after rotation, the attention's
    output, and four of the feed-forward width (gate, up, its activation, their product); of the
    experts those a token visits. Without a backward pass, two feed-forward and four hidden widths
    live at once.
    """
    shape, tp = layout.shape, layout.parallel.tp
    visited = shape.experts_per_token + shape.shared_experts
    wide = visited * shape.expert_intermediate if shape.experts else shape.intermediate
    if not kept:
        return tokens * (4 * shape.hidden + 2 * wide / tp) * layout.element
    heads = 2 * shape.query_width + 2 * shape.kv_width + shape.value_width
    norms = 2 * shape.hidden * (4 if layout.element < 4 else 0)
    return tokens * ((4 * shape.hidden + (heads + 4 * wide) / tp) * layout.element + norms)


def _logits(layout: Layout, tokens: float, trained: bool) -> float:
    """Logits in the weights' format and in float32; in training, their gradient too."""
    if layout.head != "lm":
        return 0.0
    wide = 4 if layout.element < 4 else layout.element
    once = layout.element if layout.element < 4 else 0
    return tokens * layout.shape.vocab / layout.parallel.tp * (once + wide * (2 if trained else 1))


def _gathered(layout: Layout) -> float:
    """Whole layers beside the shards: the one at work and the next, in the weights' format."""
    if not layout.sharded:
        return 0.0
    shape, tp = layout.shape, layout.parallel.tp
    experts = shape.expert_matrices / layout.parallel.ep
    layer = (shape.dense_matrices + experts) / shape.layers
    return max(2 * layer, float(shape.vocab * shape.hidden)) / tp * layout.element
