"""Bytes of one device by what they hold: those that stay, and those only while a node runs."""

from __future__ import annotations

import math

from rlinf_graph.compiler.cost.activations import LayerMemory, activation_bytes, layer_memory
from rlinf_graph.compiler.cost.constants import PACKED_TOKENS
from rlinf_graph.compiler.cost.keeps import Copies, Keeps, keeps_of
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


def resident(layout: Layout, trained: bool, keeps: Keeps | None = None) -> Bytes:
    """What stays between uses.

    A trained bfloat16 weight takes 18 bytes: 2 itself, 4 its gradient, which adds up in float32,
    12 the float32 master copy and AdamW's two moments. A float32 weight takes 16: 4, 4 and 8;
    so does a shorter one that is cast from float32 when it is gathered. (torchtitan's published
    peaks of Llama-3.1-8B at FSDP 8 and 128 differ by 17.1 to 17.6 bytes a weight.) ZeRO shards
    the optimizer's states over data-parallel ranks, fully sharded data parallelism all of them.
    """
    held = layout.held_weights
    wide = (keeps or keeps_of(layout.settings.engine)).wide_weights and layout.element < 4
    element = 4 if wide and trained else layout.element
    parts: Bytes = {"weights": held * element}
    if trained:
        parts["gradients"] = held * gradient_bytes(layout)
        master = " and master" if element < 4 else ""
        states = 8 if wide else optimizer_bytes(layout)
        parts[f"optimizer{master}"] = _optimized_weights(layout) * states
    return parts


def moved(parts: Bytes) -> float:
    """Bytes that loading or offloading moves: gradients are not needed between iterations."""
    return sum(size for name, size in parts.items() if name != "gradients")


def rollout_working(rollout: Rollout) -> Bytes:
    """Only while sampling.

    An engine that pages its cache keeps room for its largest call from the start: vLLM runs one of
    `PACKED_TOKENS` before it gives what is left to the cache.
    """
    layout = rollout.layout
    tokens = float(PACKED_TOKENS)
    if not layout.traits.paged:
        tokens = rollout.prompts * rollout.work.prompt_tokens
    layer = layer_memory(layout, keeps_of(layout.settings.engine))
    return {
        "kv cache": rollout.cache_bytes,
        "logits": rollout.slots * rollout.logits_bytes,
        "activations": tokens * layer.forward,
        "buffers": tokens * layer.exchanged,
        "workspace": layout.constants.process,
    }


def pass_working(layout: Layout, work: Forward | Train, keeps: Keeps | None = None) -> Bytes:
    """Only while a forward node or training runs.

    Args:
        layout: of the model.
        work: what is run.
        keeps: what the engine keeps; that of the layout's engine by default.
    """
    keeps = keeps or keeps_of(layout.settings.engine)
    layer = layer_memory(layout, keeps)
    samples = samples_per_step(work) if isinstance(work, Train) else _chunk(layout, work)
    mine = math.ceil(samples / layout.parallel.dp)
    together = min(mine, micro_batch_of(layout, work.lengths))
    tokens = _tokens(layout, work, together)
    if isinstance(work, Train):
        calls = math.ceil(mine / together)
        parts = _training(layout, layer, tokens, calls)
    else:
        parts = {
            "activations": tokens * layer.forward,
            "logits": tokens * _logit_bytes(layout, keeps.scores),
            "buffers": tokens * layer.exchanged + _gathered(layout),
        }
    parts["workspace"] = layout.constants.process
    return parts


def peak_tokens(samples: int, lengths: Lengths) -> float:
    """Tokens of a large micro-batch: the mean and three deviations, at most all at the longest."""
    mean = lengths.mean
    variance = sum((q - mean) ** 2 for q in lengths.quantiles) / len(lengths.quantiles)
    likely = samples * mean + 3 * math.sqrt(samples * variance)
    return min(samples * lengths.longest, likely)


def in_flight(pp: int, vp: int, calls: int) -> float:
    """Micro-batches whose activations the first rank of a pipeline keeps at once.

    As many as it has stages under 1F1B; interleaved, (p - 1) / (p v) of that more (Narayanan et
    al. 2021, Korthikanti et al. 2022); never more than there are.
    """
    more = (pp - 1) / vp if vp > 1 else 0.0
    return min(float(calls), pp + more)


def _chunk(layout: Layout, work: Forward) -> float:
    return work.samples / layout.settings.chunks


def _tokens(layout: Layout, work: Forward | Train, together: int) -> float:
    """Of one call on one rank."""
    tokens, settings = peak_tokens(together, work.lengths), layout.settings
    if isinstance(work, Train) and not layout.traits.packs:
        tokens = together * work.lengths.longest
    if settings.micro_tokens:
        tokens = min(tokens, max(settings.micro_tokens, work.lengths.longest))
    return tokens / layout.parallel.cp


def _optimized_weights(layout: Layout) -> float:
    """Weights whose optimizer states a device keeps."""
    if layout.parallel.shard != "optimizer":
        return layout.held_weights
    shards, shape = layout.parallel.dp * layout.parallel.cp, layout.shape
    experts = shape.expert_matrices * layout.stage / layout.parallel.ep / layout.parallel.tp
    others = layout.replica_weights - experts
    return others / shards + experts / max(1, shards // layout.parallel.ep)


def _training(layout: Layout, layer: LayerMemory, tokens: float, calls: int) -> Bytes:
    """Activations, logits and buffers at the worse of two moments.

    When the loss is computed, in the last stage of a pipeline, with one micro-batch in flight: what
    the layers keep, what the last of them worked with, and the logits. When the backward pass of
    the first stage begins: what the layers keep of all micro-batches in flight, and one layer
    recomputed with its gradients.
    """
    parallel = layout.parallel
    layers = layout.shape.layers * layout.stage
    flight = in_flight(parallel.pp, parallel.vp, calls) if parallel.pp > 1 else 1.0
    passed = 2 * flight * layer.full if parallel.pp > 1 else 0.0
    kept = layers * layer.kept
    loss = kept + layer.forward
    deep = flight * kept + layer.whole - layer.kept + layer.gradients + layer.gathered
    copies = layer.keeps.split_loss if parallel.tp > 1 else layer.keeps.loss
    logits = _logit_bytes(layout, copies)
    parts: Bytes = {"activations": tokens * loss, "logits": tokens * logits}
    if deep > loss + logits:
        parts = {"activations": tokens * deep}
    parts["buffers"] = tokens * (passed + layer.exchanged) + _gathered(layout) + _unsharded(layout)
    return parts


def _logit_bytes(layout: Layout, copies: Copies) -> float:
    """Of a token's logits on one tensor-parallel rank."""
    if layout.head != "lm":
        return 0.0
    return layout.shape.vocab / layout.parallel.tp * copies.bytes(activation_bytes(layout))


def _gathered(layout: Layout) -> float:
    """Whole weights beside the shards, in the format that is multiplied.

    FSDP2 gathers into one buffer and copies out of it: embedding and head stay from the forward to
    the backward pass, and there are the layer at work and the next. A pipeline keeps those of its
    stage until the last micro-batch, rather than gather them for each.
    """
    if not layout.sharded:
        return 0.0
    shape, tp = layout.shape, layout.parallel.tp
    experts = shape.expert_matrices / layout.parallel.ep
    layer = (shape.dense_matrices + experts) / shape.layers
    if layout.parallel.pp > 1:
        return (layout.replica_weights + 2 * layer / tp) * layout.element
    ends = (1 if shape.tied else 2) * shape.vocab * shape.hidden
    whole = 2 * layout.replica_weights
    return min(whole, (2 * ends + 2 * layer) / tp) * layout.element


def _unsharded(layout: Layout) -> float:
    """Gradients of a pipeline's stage, which add up whole until its last micro-batch."""
    if not layout.sharded or layout.parallel.pp == 1:
        return 0.0
    return layout.replica_weights * gradient_bytes(layout)
