"""Log-probabilities of responses, with gradients, reading a prompt once for all of its samples.

A group of GRPO repeats its prompt in every sample. Here the model reads each prompt once, and the
responses with the prompt's keys and values before them: the same numbers but for rounding, from
fewer tokens. What the samples make of a prompt adds up in its one backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlinf_graph.engines.torch.decoding import may_pad
from rlinf_graph.engines.torch.forward import padded, scored, selected_logits, within
from rlinf_graph.engines.torch.sampling import wide
from rlinf_graph.ir.batches import Rollouts
from rlinf_graph.nodes.engine import Outputs

LONGEST = 1024
"""Tokens of a sample. Attention to what was read before needs its mask spelled out, which grows
with the square of the length, and longer sequences have kernels that do without."""

LEAST_SAVED = 0.1
"""Of the tokens: two passes over the model cost more than one besides them."""


@dataclass(frozen=True)
class Prompts:
    """Different prompts of a batch, padded on the right.

    Attributes:
        tokens: int64 `(k, p)`.
        lengths: int64 `(k,)`.
        of: int64 `(n,)`, the prompt of each sample.
    """

    tokens: Tensor
    lengths: Tensor
    of: Tensor


def shares(model: PreTrainedModel) -> bool:
    """Whether prompts may be read once for several samples.

    Not in float64, in which plans are compared: norms of transformers compute in float32 whatever
    the model's type, so that gradients would depend on which samples of a prompt come together.
    """
    return model.dtype != torch.float64 and may_pad(model)


def repeated_prompts(samples: Rollouts) -> Prompts | None:
    """The prompts of a batch, each once; None where that saves too little."""
    lengths = samples.prompt_lengths
    if len(samples) < 2 or int(lengths.min()) < 1 or int(samples.lengths.max()) > LONGEST:
        return None
    inside = within(samples.lengths)
    prefix = within(lengths, inside.shape[1])[:, : int(lengths.max())]
    tokens = padded(samples.tokens, inside)[:, : prefix.shape[1]] * prefix
    rows, of = torch.cat([lengths[:, None], tokens], dim=1).unique(dim=0, return_inverse=True)
    saved = int(lengths.sum() - rows[:, 0].sum())
    if saved < LEAST_SAVED * int(samples.lengths.sum()):
        return None
    return Prompts(rows[:, 1:], rows[:, 0], of)


def outputs(
    model: PreTrainedModel, samples: Rollouts, prompts: Prompts, *, entropy: bool
) -> Outputs:
    """As `forward.outputs`, packed over the tokens."""
    inside = within(samples.lengths)
    answered = within(samples.response_lengths)
    later = ~within(samples.prompt_lengths, inside.shape[1])[inside]
    tokens = padded(samples.tokens[later], answered)
    own = padded(samples.mask[later], answered)
    first, rest = _logits(model, prompts, tokens, own)
    chosen = torch.zeros_like(own)
    chosen[:, 0] = own[:, 0]
    heat = samples.temperature[:, None].expand(own.shape)
    found = wide(torch.zeros(own.shape, dtype=model.dtype, device=own.device))
    spread = found if entropy else None
    for logits, at in ((first, chosen), (rest, own & ~chosen)):
        if logits is None:
            continue
        said, spreads = scored(logits / heat[at][:, None].to(logits.dtype), tokens[at], entropy)
        found = found.masked_scatter(at, said)
        if spread is not None and spreads is not None:
            spread = spread.masked_scatter(at, spreads)
    empty = found.new_zeros(len(samples.tokens))
    return Outputs(
        empty.masked_scatter(later, found[answered]),
        None if spread is None else empty.masked_scatter(later, spread[answered]),
    )


def _logits(
    model: PreTrainedModel, prompts: Prompts, tokens: Tensor, own: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Of the own tokens `(n, r)` of responses: of those that come first, and of the others."""
    width = prompts.tokens.shape[1]
    last = torch.arange(width, device=tokens.device) == prompts.lengths[:, None] - 1
    cache = DynamicCache(config=model.config)
    asked = selected_logits(model, prompts.tokens, last, past_key_values=cache, use_cache=True)
    first = asked.index_select(0, prompts.of)[own[:, 0]]
    if not bool(own[:, 1:].any()):
        return first, None
    cache.reorder_cache(cast("torch.LongTensor", prompts.of))
    read = tokens.shape[1] - 1
    lengths = prompts.lengths[prompts.of]
    places = lengths[:, None] + torch.arange(read, device=tokens.device)
    rest = selected_logits(
        model,
        tokens[:, :-1],
        own[:, 1:],
        attention_mask=_bias(lengths, width, read, model.dtype),
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    )
    return first, rest


def _bias(lengths: Tensor, width: int, read: int, dtype: torch.dtype) -> Tensor:
    """`(n, 1, read, width + read)`, added to scores: prompts of these lengths, then causal."""
    seen = torch.ones(read, read, dtype=torch.bool, device=lengths.device).tril()
    prompt = within(lengths, width)[:, None, :].expand(-1, read, -1)
    inside = torch.cat([prompt, seen.expand(len(lengths), -1, -1)], dim=2)
    bias = torch.zeros(inside.shape, dtype=dtype, device=lengths.device)
    return bias.masked_fill_(~inside, torch.finfo(dtype).min)[:, None]
