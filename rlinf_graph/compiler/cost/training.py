"""Forward nodes and training: seconds of a chunk, a micro-batch and an optimizer step."""

from __future__ import annotations

from collections.abc import Callable

from rlinf_graph.compiler.cost.constants import PACKED_TOKENS
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.packed import Packed
from rlinf_graph.compiler.cost.passes import (
    FORWARD,
    Parts,
    added,
    bubble_of,
    pass_parts,
    per_rank,
    scaled,
    split_calls,
    training_kind,
)
from rlinf_graph.ir.measurement import Kind
from rlinf_graph.ir.work import Forward, Lengths, Train

Correct = Callable[[Kind, Parts], Parts]
"""What measurement makes of the parts of one instruction."""


def micro_batch_of(layout: Layout, lengths: Lengths) -> int:
    """Samples of one call of a rank: the plan's, else what fits in `PACKED_TOKENS`."""
    return layout.settings.micro_batch or max(1, int(PACKED_TOKENS // max(1.0, lengths.longest)))


def forward_chunk(layout: Layout, work: Forward) -> Parts:
    """Seconds by cause of one of the chunks of a forward node."""
    parallel, chunks = layout.parallel, layout.settings.chunks
    mine = per_rank(work.samples, chunks * parallel.dp)
    calls, rest = split_calls(mine, micro_batch_of(layout, work.lengths))
    bubble = bubble_of(parallel.pp, calls + bool(rest), parallel.vp)

    def call(samples: int) -> Parts:
        return pass_parts(layout, Packed.of(samples, work.lengths, layout.head), FORWARD, bubble)

    whole = scaled(call(micro_batch_of(layout, work.lengths)), calls) if calls else {}
    return added(whole, call(rest) if rest else {})


def samples_per_step(work: Train) -> int:
    """Samples of one optimizer step."""
    return max(1, round(work.samples * work.epochs / max(1, work.optimizer_steps)))


def accumulate(layout: Layout, work: Train, samples: int) -> Parts:
    """Seconds by cause of forward and backward over `samples`, spread over the data ranks."""
    parallel = layout.parallel
    mine = per_rank(samples, parallel.dp)
    step = per_rank(samples_per_step(work), parallel.dp)
    calls, rest = split_calls(step, micro_batch_of(layout, work.lengths))
    bubble = bubble_of(parallel.pp, calls + bool(rest), parallel.vp)
    kind = training_kind(layout.settings.recompute)
    return pass_parts(layout, _training_batch(layout, mine, work.lengths), kind, bubble)


def _training_batch(layout: Layout, samples: int, lengths: Lengths) -> Packed:
    batch = Packed.of(samples, lengths, layout.head)
    return batch if layout.traits.packs else batch.padded(lengths)


def optimizer_step(layout: Layout) -> Parts:
    """Seconds by cause of averaging the gradients over replicas, clipping and AdamW.

    AdamW reads and writes weights, both moments and, in mixed precision, the master copy, and
    reads the gradient, which the norm for clipping reads once more.
    """
    parallel, constants = layout.parallel, layout.constants.passes
    weights = layout.held_weights
    if parallel.shard == "optimizer":
        weights /= parallel.dp * parallel.cp
    touched = weights * 2 * (layout.element + optimizer_bytes(layout) + gradient_bytes(layout))
    seconds = touched / (layout.hardware.memory_bandwidth * constants.bandwidth)
    parts: Parts = {"optimizer": seconds + layout.launch_s()}
    if parallel.dp * parallel.cp > 1 and not layout.sharded:
        parts["gradient all-reduce"] = _gradient_s(layout) * constants.beside
    return parts


def _gradient_s(layout: Layout) -> float:
    """Seconds to add up gradients over replicas, of which experts that are spread have fewer.

    With shards of the optimizer's states it is a reduce-scatter, and an all-gather of new weights
    (Rajbhandari et al. 2020, ZeRO, section 7.1), and takes as long. Buckets leave while the last
    micro-batch is still at work.
    """
    parallel, hardware, size = layout.parallel, layout.hardware, gradient_bytes(layout)
    experts = 0.0
    if parallel.ep > 1:
        experts = layout.shape.expert_matrices * layout.stage / parallel.ep / parallel.tp
    seconds = hardware.data.all_reduce((layout.replica_weights - experts) * size)
    if experts and hardware.replicas.size > 1:
        seconds += hardware.replicas.all_reduce(experts * size)
    return seconds


def gradient_bytes(layout: Layout) -> int:
    """Bytes of a weight's gradient: at least float32, since micro-batches add up in it."""
    return max(4, layout.element)


def optimizer_bytes(layout: Layout) -> int:
    """Bytes of AdamW for a weight: two moments, and a float32 master copy of a shorter format."""
    return 2 * layout.element if layout.element >= 4 else 12


def train_parts(layout: Layout, work: Train, correct: Correct) -> Parts:
    """Seconds by cause of an iteration's training, `correct`ed by kind of instruction."""
    ranks, micro_batch = layout.parallel.dp, micro_batch_of(layout, work.lengths)
    calls, rest = split_calls(per_rank(samples_per_step(work), ranks), micro_batch)

    def call(samples: int) -> Parts:
        return correct("accumulate", accumulate(layout, work, samples * ranks))

    whole = scaled(call(micro_batch), calls) if calls else {}
    last = call(rest) if rest else {}
    step = added(whole, last, correct("optimizer_step", optimizer_step(layout)))
    return scaled(step, work.optimizer_steps)
