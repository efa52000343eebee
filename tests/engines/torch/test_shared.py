"""Prompts that are read once for all samples: the same numbers and gradients, from fewer tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlinf_graph.engines.torch import forward, shared
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.nodes.engine import Key, Outputs, Sampling, TrainBatch
from rlinf_graph.nodes.loss import SupervisedLoss
from rlinf_graph.nodes.metric import Metrics
from tests.engines.torch.conftest import write_model

Make = Callable[..., TorchEngine]
Ask = Callable[..., Prompts]
SAMPLING = Sampling(samples=4, max_tokens=9, temperature=0.7)


def answered(make: Make, ask: Ask, *texts: str, sampling: Sampling = SAMPLING) -> Rollouts:
    return make().generate(ask(*texts), sampling, Key(0, "rollout", 0), 0)


def learned(engine: TorchEngine, said: Outputs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, entropies, and gradients of a sum in which every token counts another."""
    assert said.logprobs is not None
    assert said.entropy is not None
    weights = torch.arange(1.0, len(said.logprobs) + 1, dtype=torch.float64).sin()
    ((said.logprobs + said.entropy) * weights).sum().backward()
    gradients = {name: g.clone() for name, g in engine.gradients().items()}
    for gradient in engine.gradients().values():
        gradient.zero_()
    return said.logprobs.detach(), said.entropy.detach(), gradients


def assert_same(engine: TorchEngine, samples: Rollouts, prompts: int) -> None:
    model = cast("PreTrainedModel", engine.model)
    told = shared.repeated_prompts(samples)
    assert told is not None
    assert len(told.tokens) == prompts
    one = learned(engine, shared.outputs(model, samples, told, entropy=True))
    other = learned(engine, forward.outputs(model, samples, entropy=True))
    torch.testing.assert_close(one[:2], other[:2], rtol=1e-10, atol=1e-12)
    # float32 inside the norms of transformers
    torch.testing.assert_close(one[2], other[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("texts", [("1+2=", "3+4="), ("1+2=", "37+48=", "5=")])
def test_same_numbers_and_gradients(make: Make, ask: Ask, texts: tuple[str, ...]) -> None:
    samples = answered(make, ask, *texts)
    assert_same(make(trainable=True), samples, len(texts))


def test_samples_of_a_prompt_stand_anywhere_and_prompts_may_repeat(make: Make, ask: Ask) -> None:
    samples = answered(make, ask, "1+2=", "37+48=", "1+2=")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(1))
    mixed = packed.select(samples, order.numpy()[:-1])
    assert_same(make(trainable=True), mixed, 2)


def test_responses_of_one_token(make: Make, ask: Ask) -> None:
    short = Sampling(samples=3, max_tokens=1)
    samples = answered(make, ask, "1+2=", "37+48=", sampling=short)
    assert_same(make(trainable=True), samples, 2)


def test_tokens_that_are_not_the_policys_are_read_and_not_scored(make: Make, ask: Ask) -> None:
    samples = answered(make, ask, "1+2=", "37+48=")
    told = torch.arange(len(samples.tokens)) % 3 == 0
    assert_same(make(trainable=True), samples.replace(mask=samples.mask & ~told), 2)


def test_accumulate_reads_a_prompt_once(make: Make, ask: Ask) -> None:
    samples = answered(make, ask, "1+2=", "3+4=")
    engine = make(trainable=True, dtype="float32")
    read: list[int] = []
    engine.model.register_forward_pre_hook(
        lambda _module, _args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    engine.accumulate([TrainBatch(samples=samples)], SupervisedLoss(), Metrics())
    longest = int(samples.response_lengths.max())
    assert read == [2 * len("1+2="), 8 * (longest - 1)]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_float64_is_left_alone(make: Make, dtype: str) -> None:
    model = cast("PreTrainedModel", make(dtype=dtype).model)
    assert shared.shares(model) is (dtype != "float64")


def test_a_model_that_counts_padding_shares_nothing(make: Make, tmp_path: Path) -> None:
    sliding = {"sliding_window": 4, "layer_types": ["sliding_attention"] * 2}
    folder = write_model(tmp_path / "sliding", use_sliding_window=True, **sliding)
    model = cast("PreTrainedModel", make(path=folder, dtype="float32").model)
    assert not shared.shares(model)


def test_nothing_is_shared_where_nothing_repeats(make: Make, ask: Ask) -> None:
    once = Sampling(samples=1, max_tokens=9)
    assert shared.repeated_prompts(answered(make, ask, "1+2=", "3+4=", sampling=once)) is None
