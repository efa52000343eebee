"""What a model says of given sequences: log-probabilities, entropies, values, scores.

Sequences come packed. They are padded on the right, where causal attention keeps padding from
being seen, so no attention mask is needed and rows do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlinf_graph.engines.torch.heads import Scalar
from rlinf_graph.engines.torch.sampling import wide
from rlinf_graph.ir.batches import Rollouts, TokenExamples
from rlinf_graph.nodes.engine import Outputs

PASS_TOKENS = 8192
"""Tokens, padding included, of a forward pass without gradients: bounds the memory of logits."""

MOST_PADDING = 0.1
"""Of a pass of `SMALL_PASS` tokens; a pass costs something of its own."""

SMALL_PASS = 1024


def within(lengths: Tensor, width: int | None = None) -> Tensor:
    """bool `(n, width)`: whether a position of a padded matrix belongs to its row's sequence."""
    if width is None:
        width = int(lengths.max()) if len(lengths) else 0
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def padded(values: Tensor, inside: Tensor) -> Tensor:
    """Packed values as a matrix with zeros where `inside` is false."""
    return values.new_zeros(inside.shape).masked_scatter_(inside, values)


def selected_logits(
    model: PreTrainedModel, tokens: Tensor, chosen: Tensor, **options: Any
) -> Tensor:
    """Next-token logits after the chosen tokens only, so that the rest costs no memory.

    Args:
        model: a causal language model of transformers.
        tokens: int64 `(n, t)`.
        chosen: bool `(n, t)`, `k` of them true.
        options: for the model's forward.

    Returns:
        `(k, vocabulary)`, row by row.
    """
    last = cast("nn.Module", model.get_output_embeddings())
    hook = last.register_forward_pre_hook(lambda _, hidden: (hidden[0][chosen],))
    try:
        return model(input_ids=tokens, **options).logits
    finally:
        hook.remove()


def token_logprobs(
    model: PreTrainedModel,
    tokens: Tensor,
    mask: Tensor,
    *,
    temperature: Tensor | None = None,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each masked token given those before it.

    Args:
        model: a causal language model of transformers.
        tokens: int64 `(n, t)`, padded on the right.
        mask: bool `(n, t)`; the first token of a row has nothing before it and gets 0.
        temperature: `(n,)`, of the softmax in each row; 1 when not given.
        entropy: whether to compute it, of the distribution over each masked token.

    Returns:
        two `(n, t)`, at least float32, 0 where the mask is false; the second may be None.
    """
    mask = mask & (torch.arange(mask.shape[1], device=mask.device) > 0)
    empty = wide(torch.zeros(mask.shape, dtype=model.dtype, device=mask.device))
    if not mask.any():
        return empty, empty if entropy else None
    logits = selected_logits(model, tokens[:, :-1], mask[:, 1:], use_cache=False)
    if temperature is not None:
        logits = logits / temperature[:, None].expand(mask.shape)[mask][:, None].to(logits.dtype)
    found, spread = scored(logits, tokens[mask], entropy)
    found = empty.masked_scatter(mask, found)
    return found, None if spread is None else empty.masked_scatter(mask, spread)


def scored(logits: Tensor, tokens: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities `(k,)` of tokens, and entropies, if asked, under logits `(k, vocabulary)`.

    At least float32.
    """
    spread = torch.log_softmax(wide(logits), dim=-1)
    found = spread.gather(1, tokens[:, None])[:, 0]
    return found, -(spread.exp() * spread).sum(dim=-1) if entropy else None


def state_values(model: Scalar, tokens: Tensor) -> Tensor:
    """Values `(n, t + 1)` of the states in which tokens were chosen, and of the last state.

    Nothing is known before the first token is read: its value is 0.
    """
    if not tokens.numel():
        return model.head.weight.new_zeros(len(tokens), tokens.shape[1] + 1)
    after = model(tokens)
    return torch.cat([after.new_zeros(len(tokens), 1), after], dim=1)


def outputs(
    model: PreTrainedModel | Scalar, samples: Rollouts | TokenExamples, *, entropy: bool
) -> Outputs:
    """What the model says of a training batch, with gradients, packed over the tokens.

    The batch is on the model's device.
    """
    inside = within(samples.lengths)
    tokens = padded(samples.tokens, inside)
    if isinstance(model, Scalar):
        return Outputs(values=state_values(model, tokens)[:, :-1][inside])
    mask = padded(samples.mask, inside)
    temperature = samples.temperature if isinstance(samples, Rollouts) else None
    found, spread = token_logprobs(model, tokens, mask, temperature=temperature, entropy=entropy)
    return Outputs(found[inside], None if spread is None else spread[inside])


@torch.no_grad()
def logprobs(model: PreTrainedModel, rollouts: Rollouts, device: torch.device) -> Tensor:
    """Log-probabilities of the policy's tokens, at their temperature, packed; else 0."""
    inside = within(rollouts.lengths)
    mask = padded(rollouts.mask, inside).to(device)
    heat = rollouts.temperature.to(device)

    def of(rows: Tensor, tokens: Tensor) -> Tensor:
        chosen = mask[rows, : tokens.shape[1]]
        return token_logprobs(model, tokens, chosen, temperature=heat[rows])[0]

    return _by_length(of, rollouts, inside, device)[inside.to(device)].to(rollouts.tokens.device)


@torch.no_grad()
def values(model: Scalar, rollouts: Rollouts, device: torch.device) -> Tensor:
    """State values, packed, one more than the tokens of each sample."""

    def of(_rows: Tensor, tokens: Tensor) -> Tensor:
        return state_values(model, tokens)

    found = _by_length(of, rollouts, within(rollouts.lengths), device, extra=1)
    return found[within(rollouts.lengths + 1).to(device)].to(rollouts.tokens.device)


@torch.no_grad()
def scores(model: Scalar, sequences: list[list[int]], device: torch.device) -> Tensor:
    """One number for each sequence, `(n,)`: what the head says at its last token."""
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.int64)
    found = torch.zeros(len(sequences), dtype=model.head.weight.dtype)
    for rows in passes(lengths):
        inside = within(lengths[rows])
        packed = torch.tensor([token for row in rows.tolist() for token in sequences[row]])
        said = model(padded(packed, inside).to(device)).cpu()
        found[rows] = said.gather(1, lengths[rows, None] - 1)[:, 0]
    return found


def passes(lengths: Tensor) -> Iterator[Tensor]:
    """Rows of like length together: at most `PASS_TOKENS` with padding, or a single row.

    A pass ends before padding takes more than `MOST_PADDING` of it, unless it is a small one.
    """
    order = lengths.argsort(stable=True)
    ordered = lengths[order].tolist()
    start, tokens = 0, 0
    for end, length in enumerate(ordered):
        whole = (end + 1 - start) * length
        wasted = whole - tokens - length > MOST_PADDING * whole and tokens >= SMALL_PASS
        if end > start and (whole > PASS_TOKENS or wasted):
            yield order[start:end]
            start, tokens = end, 0
        tokens += length
    if len(ordered):
        yield order[start:]


def _by_length(
    of: Callable[[Tensor, Tensor], Tensor],
    rollouts: Rollouts,
    inside: Tensor,
    device: torch.device,
    extra: int = 0,
) -> Tensor:
    """Run `of(rows, tokens)` on rows of like length; its results as one padded matrix."""
    tokens = padded(rollouts.tokens, inside).to(device)
    found: Tensor | None = None
    for rows in passes(rollouts.lengths.cpu()):
        width = int(rollouts.lengths[rows].max())
        part = of(rows.to(device), tokens[rows.to(device), :width])
        if found is None:
            found = part.new_zeros(len(tokens), tokens.shape[1] + extra)
        found[rows.to(device), : width + extra] = part
    return tokens.new_zeros((0, extra), dtype=torch.float32) if found is None else found
