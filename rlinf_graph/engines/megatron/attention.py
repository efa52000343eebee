"""Causal attention within the sequences of a packed row, over any number of cp ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

HALF = (torch.bfloat16, torch.float16)


class PackedAttention(nn.Module):
    """In the place of Megatron's core attention, whose packed form needs Transformer Engine.

    With context parallelism each rank holds two of the `2 cp` chunks of every sequence, the
    `rank`-th from the front and from the back, so that all do the same work; keys and values are
    gathered (as in the training of Llama 3, arXiv 2407.21783, section 3.3.2).

    Args:
        config: of Megatron; its head size scales the scores.
        pg_collection: Megatron's groups.
        others: what Megatron tells its own core attention, and what follows from causality.
    """

    def __init__(self, config: Any, *, pg_collection: Any, **others: Any) -> None:  # noqa: ARG002  of the module it stands for
        super().__init__()
        self._scale = 1 / math.sqrt(config.kv_channels)
        self._group = pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002  all is in `packed_seq_params`
        *,
        packed_seq_params: Any,
        **_: Any,
    ) -> Tensor:
        """`(t, heads, size)` of queries, `(t, groups, size)` of keys and values, to the former."""
        ends: Tensor = packed_seq_params.cu_seqlens_q
        longest: int = packed_seq_params.max_seqlen_q
        if self._group.size() > 1:
            parts = chunks(ends, self._group.rank(), self._group.size())
            key, value = (gather(x, self._group)[parts.keys] for x in (key, value))
            return self._attend(query, key, value, parts.query_ends, parts.key_ends, longest)
        return self._attend(query, key, value, ends, ends, longest)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, q_ends: Tensor, k_ends: Tensor, most: int
    ) -> Tensor:
        if query.is_cuda and query.dtype in HALF:
            made = varlen_attn(
                query, key, value, q_ends, k_ends, most, most,
                scale=self._scale, window_size=(-1, 0), enable_gqa=True,
            )  # fmt: skip
            assert isinstance(made, Tensor)
            return made
        asked = q_ends.diff().tolist()
        known = k_ends.diff().tolist()
        parts = zip(query.split(asked), key.split(known), value.split(known), strict=True)
        return torch.cat([self._one(*part) for part in parts])

    def _one(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One sequence, or a part that ends where the keys do."""
        asked, known = len(query), len(key)
        whole = asked == known
        mask = None
        if not whole:
            mask = torch.ones(asked, known, dtype=torch.bool, device=query.device)
            mask = mask.tril(known - asked)
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        made = scaled_dot_product_attention(
            q, k, v, mask, is_causal=whole, scale=self._scale, enable_gqa=True
        )
        return made[0].transpose(0, 1)


@dataclass(frozen=True)
class Chunks:
    """What one cp rank attends to.

    Attributes:
        query_ends: int32, of the rank's chunks, in its own row.
        keys: int64, for each chunk all keys from its sequence's first to its own last, as places
            in the rows of all ranks one after another.
        key_ends: int32, of those.
    """

    query_ends: Tensor
    keys: Tensor
    key_ends: Tensor


def held(ends: Tensor, rank: int, size: int) -> Tensor:
    """int64: the places, in the whole row, of the tokens that a cp rank holds, in its order."""
    places: list[Tensor] = []
    for start, end in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        chunk = (end - start) // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            places.append(torch.arange(start + number * chunk, start + (number + 1) * chunk))
    return torch.cat(places).to(ends.device)


def chunks(ends: Tensor, rank: int, size: int) -> Chunks:
    """The chunks of a rank, and the keys that each of them sees.

    Args:
        ends: int32 `(n + 1,)`, of the sequences in the whole row; `2 * size` divides lengths.
        rank: of the cp group.
        size: of the cp group.
    """
    order = torch.cat([held(ends, other, size) for other in range(size)])
    stored = torch.empty_like(order)
    stored[order] = torch.arange(len(order), device=order.device)
    keys: list[Tensor] = []
    asked: list[int] = []
    for start, end in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        chunk = (end - start) // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            keys.append(stored[start : start + (number + 1) * chunk])
            asked.append(chunk)
    return Chunks(_ends(asked, ends), torch.cat(keys), _ends([len(k) for k in keys], ends))


def _ends(lengths: list[int], like: Tensor) -> Tensor:
    sums = torch.tensor([0, *lengths]).cumsum(0)
    return sums.to(like)


class _Gather(torch.autograd.Function):
    """The rows of all ranks one after another."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup, alike: bool) -> Tensor:
        ctx.group, ctx.alike = group, alike
        made = values.new_empty(group.size() * len(values), *values.shape[1:])
        dist.all_gather_into_tensor(made, values.contiguous(), group=group)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]  one output
        (gradient,) = gradients
        count = len(gradient) // ctx.group.size()
        if ctx.alike:
            return gradient.narrow(0, ctx.group.rank() * count, count), None, None
        made = gradient.new_empty(count, *gradient.shape[1:])
        dist.reduce_scatter_tensor(made, gradient.contiguous(), group=ctx.group)
        return made, None, None


def gather(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`(t, …)` of each rank, all together `(size · t, …)` on every rank; gradients are added."""
    return cast("Tensor", _Gather.apply(values, group, False))


def repeat_alike(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """As `gather`, where all ranks go on alike: each keeps the gradients of its own part."""
    return values if group.size() == 1 else cast("Tensor", _Gather.apply(values, group, True))
