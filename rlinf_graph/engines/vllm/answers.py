"""Responses under way, and the batch that they become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rlinf_graph.engines.torch.noise import key_stream, stream
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.nodes.engine import Key, Sampling

SEEDS = (1 << 63) - 1


@dataclass
class Answer:
    """A response under way.

    Attributes:
        row: of its prompt, or of itself when it is gone on with, in what was asked.
        number: which of its prompt's responses it is.
        told: tokens of the prompt.
        seed: of the tokens that are drawn now.
        tokens, logprobs, versions: of the response so far, one each a token.
        finished: whether an end token or a stop text ended it.
    """

    row: int
    number: int
    told: list[int]
    seed: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finished: bool = False

    def say(self, tokens: Sequence[int], logprobs: Sequence[float], version: int) -> None:
        """Add what was drawn."""
        self.tokens += tokens
        self.logprobs += logprobs
        self.versions += [version] * len(tokens)


def new_answers(
    prompts: Prompts, told: list[list[int]], sampling: Sampling, key: Key
) -> list[Answer]:
    """`samples` for each prompt, with seeds of the key and `prompt.index * samples + number`."""
    names = key_stream(key)
    return [
        Answer(row, number, tokens, seed_of(names, index * sampling.samples + number))
        for row, (index, tokens) in enumerate(zip(prompts.index.tolist(), told, strict=True))
        for number in range(sampling.samples)
    ]


def cut_answers(rollouts: Rollouts, key: Key) -> list[Answer]:
    """The responses as they are; those that go on get other seeds than they began with."""
    names, found = key_stream(key), []
    lengths = rollouts.lengths.tolist()
    whole = (rollouts.tokens, rollouts.logprobs, rollouts.versions)
    columns = [column.cpu().split(lengths) for column in whole]
    begins, finished = rollouts.prompt_lengths.tolist(), rollouts.finished.tolist()
    for row, (index, begin) in enumerate(zip(rollouts.index.tolist(), begins, strict=True)):
        tokens, logprobs, versions = (column[row].tolist() for column in columns)
        said = tokens[begin:]
        seed = seed_of(names, index, len(said))
        answer = Answer(row, 0, tokens[:begin], seed, finished=finished[row])
        answer.tokens, answer.logprobs, answer.versions = said, logprobs[begin:], versions[begin:]
        found.append(answer)
    return found


def seed_of(names: int, index: int, start: int = 0) -> int:
    """A seed for the generator of one request, from the stream of a key."""
    return stream(names, index, start) & SEEDS


class Groups:
    """Which responses are told, and when: each as it ends, or with `Sampling.keep` a prompt's.

    Args:
        answers: all that were asked for.
        sampling: says which of a prompt's are kept.
    """

    def __init__(self, answers: list[Answer], sampling: Sampling) -> None:
        self._keep = sampling.keep
        self._all: dict[int, list[Answer]] = {}
        self._waiting: dict[int, int] = {}
        if self._keep is not None:
            for answer in answers:
                self._all.setdefault(answer.row, []).append(answer)
            self._waiting = {row: len(group) for row, group in self._all.items()}

    def told(self, over: list[Answer]) -> Iterator[list[Answer]]:
        """What can be told now that these have ended."""
        if self._keep is None:
            if over:
                yield over
            return
        for answer in over:
            self._waiting[answer.row] -= 1
            if not self._waiting[answer.row]:
                yield self._first(self._all[answer.row])

    def late(self, answer: Answer) -> bool:
        """Whether a response that has not ended cannot be among those kept any more."""
        if self._keep is None:
            return False
        ended = sorted(len(a.tokens) for a in self._all[answer.row] if a.finished)
        return len(ended) >= self._keep and len(answer.tokens) >= ended[self._keep - 1]

    def _first(self, answers: list[Answer]) -> list[Answer]:
        """Those with the fewest tokens, cut ones last, in the order in which they were drawn."""

        def late(answer: Answer) -> tuple[float, int]:
            return (len(answer.tokens) if answer.finished else float("inf"), answer.number)

        return sorted(sorted(answers, key=late)[: self._keep], key=lambda a: a.number)


def responses(prompts: Prompts, answers: list[Answer], sampling: Sampling, text: Text) -> Rollouts:
    """Pack responses to `prompts`; with `keep` all that are told of a prompt come together."""
    rows = [answer.row for answer in answers]
    group = prompts.index.cpu()[torch.tensor(rows, dtype=torch.int64)]
    numbers = [answer.number for answer in answers]
    if sampling.keep is not None:
        numbers = [at - rows.index(row) for at, row in enumerate(rows)]
    made = Rollouts(
        index=group * sampling.returned + torch.tensor(numbers, dtype=torch.int64),
        group=group,
        lengths=torch.tensor([len(a.told) + len(a.tokens) for a in answers], dtype=torch.int64),
        prompt_lengths=torch.tensor([len(a.told) for a in answers], dtype=torch.int64),
        temperature=torch.full((len(rows),), sampling.temperature or 1.0, dtype=torch.float64),
        prompts=[prompts.prompts[row] for row in rows],
        columns=[prompts.columns[row] for row in rows],
        **_said(answers, text),
    )
    return packed.to(made, prompts.index.device)


def gone_on(rollouts: Rollouts, answers: list[Answer], text: Text) -> Rollouts:
    """The rollouts with what was said since; `answers` are in their order."""
    lengths = torch.tensor([len(a.told) + len(a.tokens) for a in answers], dtype=torch.int64)
    made = packed.to(rollouts, "cpu").replace(lengths=lengths, **_said(answers, text))
    return packed.to(made, rollouts.index.device)


def _said(answers: list[Answer], text: Text) -> dict[str, Any]:
    """The fields of `Rollouts` that tell what the policy said."""

    pairs = [n for a in answers for n in (len(a.told), len(a.tokens))]
    lengths = torch.tensor(pairs, dtype=torch.int64)
    own = torch.tensor([False, True]).repeat(len(answers)).repeat_interleave(lengths)
    logprobs, versions = torch.zeros(len(own)), torch.full((len(own),), -1)
    logprobs[own] = torch.tensor([v for a in answers for v in a.logprobs], dtype=torch.float32)
    versions[own] = torch.tensor([v for a in answers for v in a.versions], dtype=torch.int64)
    tokens = [v for a in answers for v in (*a.told, *a.tokens)]
    return {
        "tokens": torch.tensor(tokens, dtype=torch.int64),
        "mask": own,
        "logprobs": logprobs,
        "versions": versions,
        "finished": torch.tensor([a.finished for a in answers], dtype=torch.bool),
        "responses": text.decode([a.tokens for a in answers]),
    }
