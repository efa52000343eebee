"""Small networks, steps of environments, and what torch makes of the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir.batches import Observations, Transitions
from rlinf_graph.ir.graph import ModelDef, Space

VECTOR = Space((3,))
CHOICES, ARRAY = Space(choices=4, dtype="int64"), Space((2,))
BOTH = pytest.mark.parametrize("action", [CHOICES, ARRAY], ids=["choices", "array"])


def network(
    head: str = "action",
    *,
    path: str = "mlp:16x8",
    name: str = "policy",
    observation: Space | None = VECTOR,
    action: Space | None = CHOICES,
    weights: str = "random",
    dtype: str = "float64",
    seed: int = 0,
    trainable: bool = False,
) -> TorchEngine:
    made = ModelDef(
        name, path, head, dtype, weights, env="sim", observation=observation, action=action
    )
    return TorchEngine(made, seed=seed, device="cpu", dtype=dtype, trainable=trainable)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def livelier(engine: TorchEngine) -> TorchEngine:
    """Another policy than a new one, which is close to uniform."""
    given = {n: drawn(*w.shape, seed=i) for i, (n, w) in enumerate(engine.weights().items())}
    engine.update_weights((n, w / 2) for n, w in given.items())
    return engine


def observed(values: Tensor, first: int = 0) -> Observations:
    index = torch.arange(first, first + len(values))
    return Observations(index=index, group=index, values=values)


def transitions(lengths: list[int], action: Space = CHOICES, *, cut: int = 3) -> Transitions:
    """Random steps; every `cut` steps a time limit ends an episode."""
    steps, count = sum(lengths), len(lengths)
    truncated = torch.arange(steps) % cut == cut - 1
    owner = torch.arange(count).repeat_interleave(torch.tensor(lengths))
    finals = drawn(steps, 3, seed=9)
    choice = torch.randint(4, (steps,), generator=torch.Generator().manual_seed(2))
    return Transitions(
        index=torch.arange(count),
        group=torch.arange(count),
        lengths=torch.tensor(lengths),
        observations=drawn(steps + count, 3),
        actions=choice if action.choices else drawn(steps, 2, seed=2),
        logprobs=-drawn(steps, seed=3).abs(),
        versions=torch.zeros(steps, dtype=torch.int64),
        reward_values=drawn(steps, seed=4),
        terminated=torch.zeros(steps, dtype=torch.bool),
        truncated=truncated,
        finals=[[finals[t] for t in range(steps) if truncated[t] and owner[t] == row]
                for row in range(count)],
    )  # fmt: skip


def policy_of(engine: TorchEngine, observations: Tensor) -> Distribution:
    """What torch makes of the same weights, layer by layer."""
    weights = engine.weights()
    seen = observations
    for layer in range(3):
        seen = seen @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
        seen = torch.tanh(seen) if layer < 2 else seen
    if "log_std" not in weights:
        return Categorical(logits=seen)
    return Independent(Normal(seen, weights["log_std"].exp()), 1)
