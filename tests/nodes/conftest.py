"""Random batches in float64, cut anywhere, and an engine that answers from a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from rlinf_graph import rl
from rlinf_graph.ir import packed
from rlinf_graph.nodes.engine import Key, Outputs, Sampling, TrainBatch
from rlinf_graph.nodes.execution import Execution, executing


def make_rollouts(
    responses: list[str],
    *,
    masks: list[list[int]] | None = None,
    group: list[int] | None = None,
    columns: list[dict[str, Any]] | None = None,
    seed: int = 0,
) -> rl.Rollouts:
    """Samples with given answers; by default two tokens of prompt and a few of answer."""
    count = len(responses)
    masks = masks or [[0, 0] + [1] * (1 + (3 * i) % 5) for i in range(count)]
    lengths = torch.tensor([len(m) for m in masks])
    mask = torch.tensor([bool(x) for m in masks for x in m])
    draw = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(len(mask), generator=draw, dtype=torch.float64) * 3
    return rl.Rollouts(
        index=torch.arange(count),
        group=torch.arange(count) if group is None else torch.tensor(group),
        lengths=lengths,
        tokens=torch.randint(0, 50, (len(mask),), generator=draw),
        mask=mask,
        logprobs=logprobs * mask,
        versions=torch.zeros(len(mask), dtype=torch.int64),
        prompt_lengths=torch.full((count,), 2),
        finished=torch.ones(count, dtype=torch.bool),
        temperature=torch.ones(count, dtype=torch.float64),
        prompts=[f"question {i}" for i in range(count)],
        responses=responses,
        columns=columns or [{"truth": "yes"} for _ in range(count)],
    )


def random_batch(count: int = 16, seed: int = 0) -> tuple[TrainBatch, Tensor, Tensor, Tensor]:
    """A batch for every loss; with it current log-probabilities, entropies and values."""
    rollouts = make_rollouts(["a"] * count, seed=seed)
    draw = torch.Generator().manual_seed(seed + 1)

    def near(center: Tensor, spread: float) -> Tensor:
        return center + spread * torch.randn(len(center), generator=draw, dtype=torch.float64)

    behaviour = rollouts.logprobs
    zeros = torch.zeros_like(behaviour)
    batch = TrainBatch(
        samples=rollouts,
        advantages=near(zeros, 1.0),
        returns=near(zeros, 1.0),
        old_values=near(zeros, 0.5),
        reference=near(behaviour, 0.3),
        proximal=near(behaviour, 0.2),
    )
    return batch, near(behaviour, 0.4), near(zeros, 0.1).abs(), near(zeros, 0.5)


def cut(batch: TrainBatch, whole: Mapping[str, Tensor], parts: int) -> Iterator[tuple[Any, Any]]:
    """Consecutive parts of a batch, with the same parts of the model's outputs."""
    samples = batch.samples
    spans = torch.arange(len(samples)).chunk(parts)
    token_row = torch.arange(len(samples)).repeat_interleave(samples.lengths)
    for rows in spans:
        mine = (token_row >= rows[0]) & (token_row <= rows[-1])
        fields = {
            name: None if (value := getattr(batch, name)) is None else value[mine]
            for name in ("advantages", "returns", "old_values", "reference", "proximal")
        }
        part = TrainBatch(samples=packed.select(samples, rows.numpy()), **fields)
        yield part, Outputs(**{name: value[mine] for name, value in whole.items()})


class TableEngine:
    """Answers prompts from a table, and scores a text by its length."""

    def __init__(self, answers: Mapping[str, list[str]]) -> None:
        self.answers = answers
        self.asked: list[tuple[Sampling, Key, int]] = []

    def generate(self, prompts: rl.Prompts, sampling: Sampling, key: Key, version: int) -> Any:
        self.asked.append((sampling, key, version))
        rows = [i for i in range(len(prompts)) for _ in range(sampling.samples)]
        texts = [str(prompts.prompts[i]) for i in range(len(prompts))]
        given = [a for t in texts for a in self.answers[t][: sampling.samples]]
        group = [int(prompts.group[i]) for i in rows]
        return make_rollouts(given, group=group, columns=[prompts.columns[i] for i in rows])

    def scores(self, texts: list[tuple[str, str]]) -> Tensor:
        return torch.tensor([float(len(answer)) for _, answer in texts], dtype=torch.float64)

    def tokenize(self, prompt: Any) -> list[int]:
        text = prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt)
        return [ord(c) for c in text]

    def tokenize_completion(self, text: str) -> list[int]:
        return [ord(c) for c in text] + [0]


@pytest.fixture
def rollouts() -> Callable[..., rl.Rollouts]:
    return make_rollouts


@pytest.fixture
def running() -> Iterator[Execution]:
    """A node at work, whose metrics and registers can be looked at."""
    with executing(Execution(node="node", seed=1)) as execution:
        yield execution
