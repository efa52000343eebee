"""Rollouts that were cut, to whole ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlinf_graph.engines.torch.decoding import Responses, answer, may_pad
from rlinf_graph.engines.torch.forward import padded, within
from rlinf_graph.engines.torch.generation import said
from rlinf_graph.engines.torch.noise import key_stream
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Rollouts
from rlinf_graph.nodes.engine import Key, Sampling


@torch.no_grad()
def resume(
    model: PreTrainedModel,
    text: Text,
    rollouts: Rollouts,
    sampling: Sampling,
    key: Key,
    version: int,
    cut: Callable[[], bool],
) -> Rollouts:
    """Go on with responses; see `Engine.resume`. `cut` is asked before each token whether to end.

    The noise of a token depends on its place in the response: the same weights draw what they would
    have drawn without a break, but for rounding.
    """
    if not len(rollouts):
        return rollouts
    home = rollouts.tokens.device
    batch = packed.to(rollouts, model.device)
    made, versions = _unpacked(batch, sampling.max_tokens)
    before = within(made.lengths, sampling.max_tokens)
    read = padded(batch.tokens, within(batch.lengths))
    alone = replace(sampling, samples=1, keep=None)
    for rows in _alike(model, batch, sampling.max_tokens):
        lengths = batch.lengths[rows]
        prompts = read[rows, : int(lengths.max())], lengths
        index, begun = batch.index[rows], made.of(rows)
        ended = answer(
            model, text, prompts, alone, key_stream(key), index, begun=begun, cut=cut
        )  # fmt: skip
        made.put(rows, ended)
    new = within(made.lengths, sampling.max_tokens) & ~before
    asked = read[:, : int(batch.prompt_lengths.max())], batch.prompt_lengths
    done = said(text, asked, made, versions.masked_fill(new, version))
    return packed.to(packed.to(batch, "cpu").replace(**done), home)


def _unpacked(batch: Rollouts, size: int) -> tuple[Responses, Tensor]:
    """The responses so far, padded to `size` tokens, and the versions of their tokens."""
    answered = within(batch.response_lengths, size)
    later = ~within(batch.prompt_lengths, int(batch.lengths.max()))[within(batch.lengths)]
    tokens, logprobs, versions = (
        padded(column[later], answered) for column in (batch.tokens, batch.logprobs, batch.versions)
    )
    made = Responses(tokens, logprobs, batch.response_lengths.clone(), batch.finished.clone())
    return made, versions


def _alike(model: PreTrainedModel, batch: Rollouts, size: int) -> Iterator[Tensor]:
    """Rows that can go on together, with responses of one length: those that have not ended.

    Where the model cannot look past padding, prompts have one length, too.
    """
    lengths = batch.response_lengths
    open_ = ~batch.finished & (lengths < size)
    kinds = lengths if may_pad(model) else lengths * int(batch.lengths.max() + 1) + batch.lengths
    for kind in kinds[open_].unique():
        yield (open_ & (kinds == kind)).nonzero()[:, 0]
