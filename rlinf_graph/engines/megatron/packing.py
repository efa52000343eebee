"""Sequences of any length as one row of tokens, of which each cp rank holds a part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from rlinf_graph.engines.megatron.attention import held, repeat_alike
from rlinf_graph.ir.batches import Rollouts, TokenExamples


@dataclass(frozen=True)
class Row:
    """A packed micro-batch.

    With padding, `2 cp` divides the length of each sequence where cp is over 1, and `tp` the number
    of tokens that a rank holds; the last sequence may be padding alone. Padding follows what it
    pads, so that causal attention keeps it from being seen.

    Attributes:
        tokens: int64 `(t,)`, those that this rank holds.
        lengths: int64, of the sequences, with padding.
        places: int64, of each token of the batch in the whole row.
        stored: int64, where each place of the whole row lies in the parts of all ranks.
        firsts: bool, whether a token of the batch is the first of its sequence.
        wanted: int64, the tokens of the batch whose log-probability is asked for.
        after: int64, in the rank's part: the tokens after which those come.
        asked: int64, the wanted tokens that come after one of the rank's.
    """

    tokens: Tensor
    lengths: Tensor
    places: Tensor
    stored: Tensor
    firsts: Tensor
    wanted: Tensor
    after: Tensor
    asked: Tensor

    def before(self, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        """What was said just before each token of the batch, 0 before a first one.

        Args:
            values: `(t,)`, after each of the tokens that this rank holds.
            group: of cp, whose ranks all go on with the result alike.
        """
        whole = repeat_alike(values, group)
        found = whole[self.stored[(self.places - 1).clamp(min=0)]]
        return found.masked_fill(self.firsts, 0)

    def after_each(self, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        """What was said after each token of the batch; arguments as of `before`."""
        return repeat_alike(values, group)[self.stored[self.places]]


def row(samples: Rollouts | TokenExamples, *, tp: int, cp: int, rank: int) -> Row:
    """Pack a micro-batch.

    Args:
        samples: on any device, which the row is on too.
        tp: over which tokens are spread between attention and feed-forward layers.
        cp: over which sequences are spread.
        rank: of cp.
    """
    lengths = samples.lengths
    multiple = 2 * cp if cp > 1 else 1
    rounded = -(-lengths // multiple) * multiple
    rest = -int(rounded.sum()) % (tp * multiple)
    if rest or not len(rounded):
        rounded = torch.cat([rounded, rounded.new_tensor([rest or tp * multiple])])
    ends = pad(rounded.cumsum(0), (1, 0))
    starts = lengths.cumsum(0) - lengths
    shift = (ends[: len(lengths)] - starts).repeat_interleave(lengths)
    count = len(samples.tokens)
    places = torch.arange(count, device=lengths.device) + shift
    whole = samples.tokens.new_zeros(int(ends[-1])).index_copy_(0, places, samples.tokens)
    firsts = torch.zeros(count, dtype=torch.bool, device=lengths.device)
    firsts[starts[lengths > 0]] = True
    if cp == 1:
        order = torch.arange(len(whole), device=lengths.device)
        mine = order
    else:
        parts = [held(ends, other, cp) for other in range(cp)]
        order, mine = torch.cat(parts), parts[rank]
    stored = torch.empty_like(order)
    stored[order] = torch.arange(len(order), device=order.device)
    wanted = (samples.mask & ~firsts).nonzero()[:, 0]
    after = stored[places[wanted] - 1] - rank * len(mine)
    here = (after >= 0) & (after < len(mine))
    return Row(whole[mine], rounded, places, stored, firsts, wanted, after[here], wanted[here])
