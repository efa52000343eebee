"""Log-probabilities and entropies from logits whose vocabulary is spread over tp."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from rlinf_graph.engines.megatron.adapter import summed


def token_logprobs(
    logits: Tensor, tokens: Tensor, vocabulary: int, group: dist.ProcessGroup, *, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of tokens, and the entropy of the distributions they are from.

    Args:
        logits: `(k, v)`, at least float32: this rank's equal part of the vocabulary and its
            padding.
        tokens: int64 `(k,)`.
        vocabulary: size without padding.
        group: of tp; all of its ranks go on with the result alike.
        entropy: whether to compute it.

    Returns:
        two `(k,)`, the second perhaps None.
    """
    start = group.rank() * logits.shape[1]
    logits = logits[:, : max(0, vocabulary - start)]
    most = _most(logits.detach(), group)
    shifted = logits - most[:, None]
    powers = shifted.exp()
    total = summed(powers.sum(dim=-1), group)
    here = (tokens >= start) & (tokens < start + logits.shape[1])
    if logits.shape[1]:
        places = torch.where(here, tokens - start, 0)
        found = shifted.gather(1, places[:, None])[:, 0] * here
    else:
        found = shifted.sum(dim=-1)
    logprobs = summed(found, group) - total.log()
    if not entropy:
        return logprobs, None
    return logprobs, total.log() - summed((powers * shifted).sum(dim=-1), group) / total


def _most(logits: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The greatest logit of each row, over the whole vocabulary."""
    lowest = logits.new_full((len(logits), 1), -torch.inf)
    most = torch.cat([logits, lowest], dim=1).amax(dim=1)
    if group.size() > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
    return most
