"""What a model says of samples, through the pipeline; results are on all of its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlinf_graph.engines.megatron.model import Part
from rlinf_graph.engines.megatron.outputs import token_logprobs
from rlinf_graph.engines.megatron.packing import Row, row
from rlinf_graph.engines.torch.device import moved
from rlinf_graph.engines.torch.forward import PASS_TOKENS
from rlinf_graph.engines.torch.sampling import wide
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Rollouts, TokenExamples
from rlinf_graph.nodes.engine import Outputs, TrainBatch
from rlinf_graph.nodes.loss import Loss
from rlinf_graph.nodes.metric import Metrics

Texts = Rollouts | TokenExamples


@dataclass(frozen=True)
class _Packed:
    """A micro-batch on the device, and its row."""

    batch: TrainBatch
    row: Row


def accumulate(part: Part, batches: Items[TrainBatch], loss: Loss, metrics: Metrics) -> float:
    """Forward and backward of micro-batches; the sum of the loss's weights."""
    steps = [_pack(part, moved(batch, part.device)) for batch in batches if len(batch.samples)]
    if not steps:
        return 0.0
    weights: list[float] = []
    made = Metrics()

    def finish(step: _Packed, said: Tensor) -> Tensor:
        outputs = _outputs(part, step, said, entropy=loss.entropy)
        total, weight = loss(outputs, step.batch, made)
        weights.append(weight)
        return total + said[:0].sum()  # a loss of no token has gradients too: the stages wait

    part.run(steps, _row, finish, backward=True)
    weights, kept = _from_last_stage(part, (weights, made.kept))
    metrics.merge(Metrics(kept))
    return sum(weights)


@torch.no_grad()
def logprobs(part: Part, rollouts: Rollouts) -> Tensor:
    """Log-probabilities of the policy's tokens, at their temperature, packed; else 0."""

    def finish(step: _Packed, said: Tensor) -> Tensor:
        found = _outputs(part, step, said, entropy=False).logprobs
        assert found is not None
        return found

    return _pieced(part, rollouts, finish, rollouts.lengths)


@torch.no_grad()
def values(part: Part, rollouts: Rollouts) -> Tensor:
    """State values, packed, one more than the tokens of each sample; the first is 0."""

    def finish(step: _Packed, said: Tensor) -> Tensor:
        after = step.row.after_each(said[:, 0], part.groups.cp)
        lengths = step.batch.samples.lengths
        inside = torch.ones(len(after) + len(lengths), dtype=torch.bool, device=after.device)
        inside[(lengths + 1).cumsum(0) - lengths - 1] = False
        return after.new_zeros(len(inside)).masked_scatter(inside, after)

    return _pieced(part, rollouts, finish, rollouts.lengths + 1)


def _outputs(part: Part, step: _Packed, said: Tensor, *, entropy: bool) -> Outputs:
    """What the last stage says, packed over all tokens of the micro-batch."""
    samples, at, cp = _texts(step.batch), step.row, part.groups.cp
    if part.made.head == "value":
        return Outputs(values=at.before(said[:, 0], cp))
    if isinstance(samples, Rollouts):
        heat = samples.temperature.repeat_interleave(samples.lengths)[at.asked]
        said = said / heat[:, None].to(said.dtype)
    found, spread = token_logprobs(
        wide(said), samples.tokens[at.asked], part.made.vocabulary, part.groups.tp, entropy=entropy
    )

    def spread_out(chosen: Tensor) -> Tensor:
        rows = chosen.new_zeros(len(at.tokens)).index_put((at.after,), chosen)
        return at.before(rows, cp)

    return Outputs(spread_out(found), None if spread is None else spread_out(spread))


def _pieced(
    part: Part, rollouts: Rollouts, finish: Callable[[_Packed, Tensor], Tensor], lengths: Tensor
) -> Tensor:
    """Run without gradients, in passes; what `finish` made, `lengths` numbers a sample."""
    steps = [
        _pack(part, moved(TrainBatch(packed.select(rollouts, rows)), part.device))
        for rows in passes(rollouts.lengths)
    ]
    found = part.run(steps, _row, finish, backward=False) if steps else []
    like = torch.promote_types(part.dtype, torch.float32)
    if part.last:
        whole = torch.cat(found) if found else torch.zeros(0, dtype=like, device=part.device)
    else:
        whole = torch.empty(int(lengths.sum()), dtype=like, device=part.device)
    if part.groups.pp.size() > 1 and len(whole):
        dist.broadcast(whole, _last_rank(part), group=part.groups.pp)
    return whole.to(rollouts.tokens.device)


def passes(lengths: Tensor) -> Iterator[range]:
    """Samples one after another: at most `PASS_TOKENS` tokens, or a single sample."""
    start, tokens = 0, 0
    for end, length in enumerate(lengths.tolist()):
        if end > start and tokens + length > PASS_TOKENS:
            yield range(start, end)
            start, tokens = end, 0
        tokens += length
    if len(lengths):
        yield range(start, len(lengths))


def _pack(part: Part, batch: TrainBatch) -> _Packed:
    parallel = part.parallel
    made = row(_texts(batch), tp=parallel.tp, cp=parallel.cp, rank=part.groups.cp.rank())
    return _Packed(batch, made)


def _row(step: _Packed) -> Row:
    return step.row


def _texts(batch: TrainBatch) -> Texts:
    if not isinstance(batch.samples, Texts):
        raise TypeError(f"{type(batch.samples).__name__} are no sequences of tokens")
    return batch.samples


def _last_rank(part: Part) -> int:
    group = part.groups.pp
    return dist.get_global_rank(group, group.size() - 1)


def _from_last_stage(part: Part, made: Any) -> Any:
    """What the last stage of the pipeline has, on all stages."""
    if part.groups.pp.size() == 1:
        return made
    held = [made]
    dist.broadcast_object_list(held, _last_rank(part), group=part.groups.pp, device=part.device)
    return held[0]
