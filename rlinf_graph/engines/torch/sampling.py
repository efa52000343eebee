"""One token for each sequence, drawn from a model's logits."""

from __future__ import annotations

import torch
from torch import Tensor

from rlinf_graph.engines.torch.noise import TokenNoise
from rlinf_graph.nodes.engine import Sampling


def wide(logits: Tensor) -> Tensor:
    """Logits in the type that probabilities are computed in: at least float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities of the distribution that is sampled from.

    Args:
        logits: `(n, vocabulary)`.
        sampling: its temperature is over 0.

    Returns:
        `(n, vocabulary)`: after temperature and truncation, normalized; -inf for what `top_p` cuts.
    """
    logprobs = torch.log_softmax(wide(logits) / sampling.temperature, dim=-1)
    if sampling.top_p >= 1:
        return logprobs
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(dim=-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
    return torch.log_softmax(torch.empty_like(logprobs).scatter_(1, order, ordered), dim=-1)


def draw(
    logits: Tensor, sampling: Sampling, noise: TokenNoise, index: Tensor, position: int
) -> tuple[Tensor, Tensor]:
    """Tokens, and their log-probabilities under the distribution they were drawn from.

    Sampling is an argmax over log-probabilities plus keyed Gumbel noise. At temperature 0 the
    distribution is a point mass: the most probable token, with log-probability 0.

    Args:
        logits: `(n, vocabulary)`.
        sampling: temperature and truncation.
        noise: of the node and the iteration.
        index: int64 `(n,)`, of the samples.
        position: of the token in its response.

    Returns:
        int64 `(n,)` and float `(n,)`.
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, wide(logits.new_zeros(len(tokens)))
    logprobs = distribution(logits, sampling)
    tokens = (noise.at(index, position, logprobs.shape[1]) + logprobs).argmax(dim=-1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]
