"""The decoding loop: one token for every sequence of a batch at a time, with a key-value cache.

Prompts are read once each, padded on the right: causal attention keeps the padding from being
seen by its own prompt, and a bias keeps it from the tokens that follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlinf_graph.engines.torch.forward import PASS_TOKENS, selected_logits, within
from rlinf_graph.engines.torch.noise import TokenNoise
from rlinf_graph.engines.torch.sampling import draw, wide
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.nodes.engine import Sampling

TAIL = 4
"""Tokens looked at for a stop text beyond its bytes: one character may take that many."""


@dataclass
class Responses:
    """Responses padded on the right to the token limit.

    Attributes:
        tokens: int64 `(b, max_tokens)`.
        logprobs: `(b, max_tokens)`, at least float32.
        lengths: int64 `(b,)`.
        finished: bool `(b,)`; false where the token limit cut the response.
    """

    tokens: Tensor
    logprobs: Tensor
    lengths: Tensor
    finished: Tensor

    def first(self, sampling: Sampling) -> Responses:
        """Of each prompt those that `Sampling.keep` says, in the order in which they were drawn."""
        if sampling.keep is None:
            return self
        samples = sampling.samples
        lengths, finished = self.lengths.view(-1, samples), self.finished.view(-1, samples)
        late = torch.where(finished, lengths, self.tokens.shape[1] + 1)
        kept = late.argsort(dim=1, stable=True)[:, : sampling.keep].sort(dim=1).values
        starts = torch.arange(len(kept), device=kept.device)[:, None] * samples
        return self.of((starts + kept).flatten())

    def of(self, rows: Tensor) -> Responses:
        """Copies of some."""
        return Responses(*(part[rows] for part in vars(self).values()))

    def put(self, rows: Tensor, made: Responses) -> None:
        """Replace those of `rows`."""
        for name, part in vars(made).items():
            getattr(self, name)[rows] = part

    def complete(self, sampling: Sampling) -> Tensor:
        """bool `(b,)`: as many responses to its prompt have finished as are kept."""
        count = self.finished.view(-1, sampling.samples).sum(dim=1)
        return (count >= sampling.returned).repeat_interleave(sampling.samples)


@dataclass
class Live:
    """Sequences still being answered.

    Attributes:
        rows: int64 `(live,)`, their places in `Responses`.
        index: int64 `(live,)`, of the samples.
        going: bool `(live,)`; ended ones are dropped together, when half have ended.
        positions: int64 `(live,)`, of the next token.
        bias: `(live, tokens)`, added to attention scores; None where no prompt is padded.
        seen: columns of the bias that the cache holds.
        cache: keys and values.
        logits: `(live, vocabulary)`, of the next token.
    """

    rows: Tensor
    index: Tensor
    going: Tensor
    positions: Tensor
    bias: Tensor | None
    seen: int
    cache: DynamicCache
    logits: Tensor

    def drop_ended(self) -> Tensor:
        """Keep those still going; the places they had."""
        kept = self.going.nonzero()[:, 0]
        self.rows, self.index = self.rows[kept], self.index[kept]
        self.going, self.positions = self.going[kept], self.positions[kept]
        self.bias = None if self.bias is None else self.bias[kept]
        self.cache.batch_select_indices(kept)
        return kept

    def read(self, model: PreTrainedModel, tokens: Tensor) -> None:
        """Let the model read one more token of each."""
        self.seen += 1
        said = model(
            input_ids=tokens[:, None],
            attention_mask=None if self.bias is None else self.bias[:, None, None, : self.seen],
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = said.logits[:, -1]
        self.positions = self.positions + 1


def may_pad(model: PreTrainedModel) -> bool:
    """Whether the model can be told to look past padding inside a sequence.

    Sliding windows count the padding, and states of linear attention take it in.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None and not model._is_stateful


def answer(
    model: PreTrainedModel,
    text: Text,
    prompts: tuple[Tensor, Tensor],
    sampling: Sampling,
    stream: int,
    index: Tensor,
    *,
    begun: Responses | None = None,
    cut: Callable[[], bool] = lambda: False,
) -> Responses:
    """Answer each prompt `samples` times.

    Args:
        model: a causal language model.
        text: its tokenizer and end tokens.
        prompts: int64 `(n, t)`, padded on the right, and their lengths, `(n,)`.
        sampling: how.
        stream: of the node and the iteration.
        index: int64 `(n * samples,)`, of the samples, those of a prompt together.
        begun: responses of one length to go on with, which are changed; then prompts are all that
            is read before, these included, and `samples` is 1.
        cut: asked before each token whether to end here.
    """
    noise = TokenNoise(stream, sampling.max_tokens)
    with torch.inference_mode():
        made = begun or _room(len(index), sampling.max_tokens, model)
        _answer(model, text, prompts, sampling, noise, index, made, cut)
    return Responses(*(part.clone() for part in vars(made).values()))  # clones can be trained on


def _answer(
    model: PreTrainedModel,
    text: Text,
    prompts: tuple[Tensor, Tensor],
    sampling: Sampling,
    noise: TokenNoise,
    index: Tensor,
    made: Responses,
    cut: Callable[[], bool],
) -> None:
    """Go on with `made`."""
    if not len(index) or cut():
        return
    ends = index.new_tensor(text.ends)
    live = _read_prompts(model, *prompts, sampling, index)
    for step in range(int(made.lengths[0]), sampling.max_tokens):
        if cut():
            break
        drawn, logprobs = draw(live.logits, sampling, noise, live.index, step)
        made.tokens[live.rows, step] = drawn
        made.logprobs[live.rows, step] = logprobs
        made.lengths[live.rows] += live.going
        ended = torch.isin(drawn, ends)
        if sampling.stop:
            ended |= _stopped(text, made.tokens[live.rows, : step + 1], sampling.stop)
        made.finished[live.rows] |= ended & live.going
        live.going &= ~ended
        if sampling.keep is not None:
            live.going &= ~made.complete(sampling)[live.rows]
        count = int(live.going.sum())
        if not count or step + 1 == sampling.max_tokens:
            break
        if count <= len(live.rows) // 2:
            drawn = drawn[live.drop_ended()]
        live.read(model, drawn)


def _room(count: int, size: int, model: PreTrainedModel) -> Responses:
    ints = torch.zeros(count, size, dtype=torch.int64, device=model.device)
    return Responses(
        tokens=ints,
        logprobs=wide(torch.zeros(count, size, dtype=model.dtype, device=model.device)),
        lengths=ints.new_zeros(count),
        finished=ints.new_zeros(count, dtype=torch.bool),
    )


def _read_prompts(
    model: PreTrainedModel, tokens: Tensor, lengths: Tensor, sampling: Sampling, index: Tensor
) -> Live:
    """Read each prompt once, and repeat what was read for its samples."""
    samples, width = sampling.samples, tokens.shape[1]
    inside = within(lengths)
    logits, cache = _prefill(model, tokens, lengths)
    cache.batch_repeat_interleave(samples)
    bias = None
    if not bool(inside.all()):
        bias = logits.new_zeros(len(tokens), width + sampling.max_tokens, dtype=model.dtype)
        bias[:, :width].masked_fill_(~inside, torch.finfo(model.dtype).min)
        bias = bias.repeat_interleave(samples, dim=0)
    count = len(tokens) * samples
    return Live(
        rows=torch.arange(count, device=tokens.device),
        index=index,
        going=torch.ones(count, dtype=torch.bool, device=tokens.device),
        positions=lengths.repeat_interleave(samples),
        bias=bias,
        seen=width,
        cache=cache,
        logits=logits.repeat_interleave(samples, dim=0),
    )


def _prefill(
    model: PreTrainedModel, tokens: Tensor, lengths: Tensor
) -> tuple[Tensor, DynamicCache]:
    """Logits after the last token of each row, and keys and values of all; in passes of at most
    `PASS_TOKENS`, but for models whose states are no keys and values."""
    width = tokens.shape[1]
    last = torch.arange(width, device=tokens.device) == lengths[:, None] - 1
    rows = len(tokens) if model._is_stateful else max(1, PASS_TOKENS // width)
    logits: list[Tensor] = []
    caches: list[DynamicCache] = []
    for part, chosen in zip(tokens.split(rows), last.split(rows), strict=True):
        cache = DynamicCache(config=model.config)
        logits.append(selected_logits(model, part, chosen, past_key_values=cache, use_cache=True))
        caches.append(cache)
    first, *others = caches
    if others:
        for layer, *more in zip(*(cache.layers for cache in caches), strict=True):
            layer.keys = torch.cat([layer.keys, *(other.keys for other in more)])
            layer.values = torch.cat([layer.values, *(other.values for other in more)])
    return torch.cat(logits), first


def _stopped(text: Text, responses: Tensor, stop: tuple[str, ...]) -> Tensor:
    """Whether the ends of responses `(n, t)` contain a stop text."""
    window = max(len(s.encode()) for s in stop) + TAIL
    tails = text.decode(responses[:, -window:].tolist(), special=True)
    return responses.new_tensor([any(s in tail for s in stop) for tail in tails]).bool()
