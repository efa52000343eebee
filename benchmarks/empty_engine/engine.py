"""Answers at once, trains nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.nodes.engine import Key, Sampling, Shard, TrainBatch


@functools.cache
def _answers(count: int) -> dict[str, torch.Tensor]:
    """What is the same in all rollouts of so many samples; nobody writes to them."""
    own = torch.tensor([0, 1]).repeat(count)
    return {
        "lengths": torch.full((count,), 2),
        "tokens": own,
        "mask": own.bool(),
        "logprobs": torch.zeros(2 * count, dtype=torch.float64),
        "prompt_lengths": torch.ones(count, dtype=torch.int64),
        "finished": torch.ones(count, dtype=torch.bool),
        "temperature": torch.ones(count, dtype=torch.float64),
    }


class EmptyEngine:
    """Answers at once, trains nothing."""

    def __init__(self, *_model: Any, **_options: Any) -> None:
        pass

    def generate(self, prompts: Prompts, sampling: Sampling, _key: Key, version: int) -> Rollouts:
        """One token asked, one answered."""
        count, group = len(prompts) * sampling.samples, prompts.index.numpy()
        index = group[:, None] * sampling.samples + np.arange(sampling.samples)
        return Rollouts(
            index=torch.from_numpy(index.reshape(-1)),
            group=torch.from_numpy(group.repeat(sampling.samples)),
            versions=torch.full((2 * count,), version),
            prompts=[prompt for prompt in prompts.prompts for _ in range(sampling.samples)],
            responses=["1"] * count,
            columns=[columns for columns in prompts.columns for _ in range(sampling.samples)],
            **_answers(count),
        )

    def logprobs(self, rollouts: Rollouts) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(len(rollouts.tokens), dtype=torch.float64)

    def accumulate(self, batches: Sequence[TrainBatch], *_: Any) -> float:
        """As many as there are samples."""
        return float(sum(len(batch.samples) for batch in batches))

    def gradients(self) -> dict[str, torch.Tensor]:
        """One number."""
        return {"weight": torch.zeros(1)}

    def shards(self) -> list[Shard]:
        """One number."""
        return [Shard("weight", (1,), (0,), torch.zeros(1))]

    def optimizer_step(self, *_: Any) -> None:
        """Nothing."""

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]], _version: int) -> None:
        """Read all."""
        list(weights)

    def load(self) -> None:
        """Nothing."""

    def offload(self) -> None:
        """Nothing."""
