"""Prompts to rollouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlinf_graph.engines.torch.decoding import Responses, answer, may_pad
from rlinf_graph.engines.torch.forward import padded, within
from rlinf_graph.engines.torch.noise import key_stream
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.nodes.engine import Key, Sampling


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    text: Text,
    prompts: Prompts,
    sampling: Sampling,
    key: Key,
    version: int,
    cut: Callable[[], bool],
) -> Rollouts:
    """Answer prompts; see `Engine.generate`. `cut` is asked before each token whether to end.

    Raises:
        CompileError: RG0503, for a prompt that the tokenizer cannot read.
    """
    asked = text.encode(prompts.prompts)
    lengths = torch.tensor([len(tokens) for tokens in asked], dtype=torch.int64)
    groups = [torch.arange(len(asked))]
    if not may_pad(model):
        groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()] or groups
    parts: list[Rollouts] = []
    for rows in groups:
        told = packed.select(prompts, rows.numpy())
        tokens = torch.tensor([t for row in rows.tolist() for t in asked[row]], dtype=torch.int64)
        matrix = padded(tokens, within(lengths[rows]))
        drawn = _sample_index(told, sampling.samples)
        made = answer(
            model,
            text,
            (matrix.to(model.device), lengths[rows].to(model.device)),
            sampling,
            key_stream(key),
            drawn.to(model.device),
            cut=cut,
        )
        made, index = made.first(sampling), _sample_index(told, sampling.returned)
        parts.append(_rollouts(text, told, (matrix, lengths[rows]), made, index, version))
    found = packed.concat(parts)
    found = found.replace(temperature=found.temperature * (sampling.temperature or 1.0))
    if len(parts) == 1:
        return found
    places = torch.cat(groups).argsort()[:, None] * sampling.returned
    order = (places + torch.arange(sampling.returned)).flatten()
    return packed.select(found, order.numpy())


def _sample_index(prompts: Prompts, samples: int) -> Tensor:
    """int64 `(n * samples,)`: of response j of a prompt, `prompt.index * samples + j`."""
    each = torch.arange(samples, device=prompts.index.device)
    return (prompts.index[:, None] * samples + each).flatten()


def _rollouts(
    text: Text,
    prompts: Prompts,
    asked: tuple[Tensor, Tensor],
    made: Responses,
    index: Tensor,
    version: int,
) -> Rollouts:
    """Pack prompts and responses, on the device that the prompts came from."""
    samples = len(index) // max(1, len(prompts))
    matrix, lengths = (part.repeat_interleave(samples, dim=0) for part in asked)
    told = Rollouts(
        index=index,
        group=prompts.index.repeat_interleave(samples),
        prompt_lengths=lengths,
        temperature=torch.ones(len(index), dtype=torch.float64),
        prompts=[prompt for prompt in prompts.prompts for _ in range(samples)],
        columns=[columns for columns in prompts.columns for _ in range(samples)],
        **said(text, (matrix, lengths), made, torch.full_like(made.tokens, version)),
    )
    return packed.to(told, prompts.index.device)


def said(
    text: Text, asked: tuple[Tensor, Tensor], made: Responses, versions: Tensor
) -> dict[str, Any]:
    """The fields of `Rollouts` that tell what was said, on the CPU.

    Args:
        text: reads tokens.
        asked: prompts, int64 `(n, t)`, padded on the right, and their lengths, `(n,)`.
        made: the responses.
        versions: int64, like their tokens: of the weights that chose each.
    """
    matrix, lengths = (part.cpu() for part in asked)
    answered = within(made.lengths.cpu())
    width = answered.shape[1]
    responses, logprobs = made.tokens[:, :width].cpu(), made.logprobs[:, :width].cpu()
    inside = torch.cat([within(lengths, matrix.shape[1]), answered], dim=1)
    own = torch.cat([torch.zeros_like(matrix, dtype=torch.bool), answered], dim=1)[inside]
    rows = zip(responses.tolist(), made.lengths.tolist(), strict=True)
    unsaid = versions.new_full(own.shape, -1, device="cpu")
    return {
        "lengths": inside.sum(dim=1),
        "tokens": torch.cat([matrix, responses], dim=1)[inside],
        "mask": own,
        "logprobs": padded(logprobs[answered], own),
        "versions": unsaid.masked_scatter(own, versions[:, :width].cpu()[answered]),
        "finished": made.finished.cpu(),
        "responses": text.decode([tokens[:length] for tokens, length in rows]),
    }
