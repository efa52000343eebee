"""One more turn of dialogs: read what is new, then speak. Every turn reads the whole dialog."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import jinja2
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlinf_graph.engines.torch.decoding import Responses, answer, may_pad
from rlinf_graph.engines.torch.forward import padded, within
from rlinf_graph.engines.torch.noise import key_stream
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Dialogs
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.nodes.engine import Key, Sampling

SPOKEN, ANSWERED = "whatthepolicysaid", "whatthetoolsaid"
"""Stand in a conversation that a chat template is asked to write, to be found in its text."""

ROLES = ("tool", "user")
"""Of the message with a tool's answer: the first that the chat template shows is taken."""


@torch.no_grad()
def reply(
    model: PreTrainedModel,
    text: Text,
    dialogs: Dialogs,
    sampling: Sampling,
    key: Key,
    version: int,
) -> Dialogs:
    """Let the policy speak once more; see `Engine.reply`. Dialogs that are done stay as they are.

    Raises:
        CompileError: RG0503, for a prompt that the tokenizer cannot read, and for a chat template
            that has no place for a tool's answer.
    """
    done = packed.host(dialogs.done)
    going, over = (~done).nonzero()[0], done.nonzero()[0]
    if not len(going):
        return dialogs
    if len(over):
        made = reply(model, text, packed.select(dialogs, going), sampling, key, version)
        both = packed.concat([made, packed.select(dialogs, over)])
        return packed.select(both, np.argsort(np.concatenate([going, over])))
    told = _told(text, packed.to(dialogs, "cpu"))
    spoken = _spoken(model, text, told, sampling, key)
    inside = within(spoken.lengths)
    own = spoken.tokens[:, : inside.shape[1]][inside]
    fields = {
        "tokens": own,
        "mask": torch.ones_like(own, dtype=torch.bool),
        "logprobs": spoken.logprobs[:, : inside.shape[1]][inside],
        "versions": torch.full_like(own, version),
    }
    rows = zip(spoken.tokens.tolist(), spoken.lengths.tolist(), strict=True)
    made = _extended(told, spoken.lengths, fields).replace(
        finished=spoken.finished,
        temperature=torch.full_like(told.temperature, sampling.temperature or 1.0),
        responses=text.decode([tokens[:length] for tokens, length in rows]),
        turns=told.turns + 1,
        answers=[""] * len(told),
    )
    return packed.to(made, dialogs.index.device)


def _told(text: Text, dialogs: Dialogs) -> Dialogs:
    """The dialogs with what the policy reads now: the prompt, later what a tool answered."""
    heard = _heard(text, dialogs)
    lengths = torch.tensor([len(tokens) for tokens in heard], dtype=torch.int64)
    tokens = torch.tensor([t for row in heard for t in row], dtype=torch.int64)
    fields = {
        "tokens": tokens,
        "mask": torch.zeros_like(tokens, dtype=torch.bool),
        "logprobs": torch.zeros_like(tokens, dtype=dialogs.logprobs.dtype),
        "versions": torch.full_like(tokens, -1),
    }
    asked = torch.where(dialogs.turns == 0, lengths, dialogs.prompt_lengths)
    return _extended(dialogs, lengths, fields).replace(prompt_lengths=asked)


def _extended(dialogs: Dialogs, lengths: Tensor, more: Mapping[str, Tensor]) -> Dialogs:
    """Packed values of `lengths` put behind those of each dialog, in the number format of these."""
    before, behind = within(dialogs.lengths), within(lengths)
    inside = torch.cat([before, behind], dim=1)
    fields: dict[str, Any] = {}
    for name, values in more.items():
        held = padded(getattr(dialogs, name).to(values.dtype), before)
        fields[name] = torch.cat([held, padded(values, behind)], dim=1)[inside]
    return dialogs.replace(lengths=dialogs.lengths + lengths, **fields)


def _spoken(
    model: PreTrainedModel, text: Text, told: Dialogs, sampling: Sampling, key: Key
) -> Responses:
    """One turn of each dialog, on the CPU."""
    lengths, matrix = told.lengths, padded(told.tokens, within(told.lengths))
    groups = [torch.arange(len(told))]
    if not may_pad(model):
        groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
    parts = [
        answer(
            model,
            text,
            (
                matrix[rows, : int(lengths[rows].max())].to(model.device),
                lengths[rows].to(model.device),
            ),
            sampling,
            key_stream(key),
            told.index[rows].to(model.device),
        )
        for rows in groups
    ]
    order = torch.cat(groups).argsort()
    return Responses(
        tokens=torch.cat([part.tokens for part in parts]).cpu()[order],
        logprobs=torch.cat([part.logprobs for part in parts]).cpu()[order],
        lengths=torch.cat([part.lengths for part in parts]).cpu()[order],
        finished=torch.cat([part.finished for part in parts]).cpu()[order],
    )


def _heard(text: Text, dialogs: Dialogs) -> list[list[int]]:
    """The tokens that come before the policy's next turn."""
    first = [turns == 0 for turns in dialogs.turns.tolist()]
    asked = [prompt for prompt, new in zip(dialogs.prompts, first, strict=True) if new]
    prompts = iter(text.encode(asked) if asked else [])
    ends = dialogs.lengths.cumsum(0).tolist()
    found: list[list[int]] = []
    for row, new in enumerate(first):
        if new:
            found.append(next(prompts))
        elif isinstance(dialogs.prompts[row], str):
            found.append(_ids(text, dialogs.answers[row]))
        else:
            last = int(dialogs.tokens[ends[row] - 1])
            found.append(_message(text, dialogs.answers[row], last))
    return found


def _ids(text: Text, told: str) -> list[int]:
    return cast("list[int]", text.tokenizer(told, add_special_tokens=False).input_ids)


def _message(text: Text, told: str, last: int) -> list[int]:
    """An answer as a message of its own, up to where the policy speaks.

    What the chat template writes behind a policy's message begins with the end token: where the
    policy has said it itself, as `last`, it is left out.
    """
    tokens = _ids(text, _behind(text, _role(text), told))
    return tokens[1:] if tokens[:1] == [last] and last in text.ends else tokens


@functools.cache
def _role(text: Text) -> str:
    """The role in which the chat template shows what a tool said.

    Raises:
        CompileError: RG0503, for a template that shows it in none.
    """
    for role in ROLES:
        try:
            if ANSWERED in _behind(text, role, ANSWERED):
                return role
        except jinja2.TemplateError:  # as templates refuse roles they do not know
            continue
    message = f"the chat template of `{text.model}` has no place for what a tool answers"
    raise fail("RG0503", message, help=("use prompts that are texts, or another model",))


def _behind(text: Text, role: str, told: str) -> str:
    """What the chat template writes behind a policy's turn that a message follows."""
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": SPOKEN},
        {"role": role, "content": told},
    ]
    written = text.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return cast("str", written).rpartition(SPOKEN)[2]
