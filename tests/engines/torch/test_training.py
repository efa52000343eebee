import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.engine import Key, Sampling, TrainBatch
from rlinf_graph.nodes.loss import GRPOLoss, ValueLoss
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW

Make = Callable[..., TorchEngine]
Ask = Callable[..., Prompts]

LOSS = GRPOLoss(kl=0.1, entropy_bonus=0.01)


@pytest.fixture
def rollouts(make: Make, ask: Ask) -> Rollouts:
    texts = ("1+2=", "37+48=", "5=", "123+456=")
    return make().generate(ask(*texts), Sampling(samples=4, max_tokens=7), Key(0, "r", 0), 0)


def train_batch(rollouts: Rollouts) -> TrainBatch:
    """Targets that are a function of each sample, so that cutting does not change them."""
    parts = [
        torch.randn(int(n), generator=torch.Generator().manual_seed(int(i)), dtype=torch.float64)
        for i, n in zip(rollouts.index, rollouts.lengths, strict=True)
    ]
    targets = torch.cat(parts)
    reference = (rollouts.logprobs - 0.1 * targets.abs()) * rollouts.mask
    return TrainBatch(rollouts, advantages=targets, returns=targets, reference=reference)


def fill(engine: TorchEngine, rollouts: Rollouts, pieces: int) -> float:
    loss = LOSS if engine.definition.head == "lm" else ValueLoss()
    each = len(rollouts) // pieces
    return sum(
        engine.accumulate(
            [train_batch(packed.select(rollouts, range(i * each, (i + 1) * each)))], loss, Metrics()
        )
        for i in range(pieces)
    )


@pytest.mark.parametrize("head", ["lm", "value"])
def test_gradients_do_not_depend_on_the_cut(make: Make, rollouts: Rollouts, head: str) -> None:
    found = []
    for pieces in (1, 2, 8):
        engine = make(head, trainable=True)
        if head == "value":
            engine.update_weights([("head.weight", torch.full((1, 32), 0.1, dtype=torch.float64))])
        weight = fill(engine, rollouts, pieces)
        found.append((weight, {n: g.clone() for n, g in engine.gradients().items()}))
    whole, gradients = found[0]
    assert any(g.any() for g in gradients.values())
    for weight, others in found[1:]:
        assert math.isclose(weight, whole)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=0, atol=1e-10)


def test_a_step_is_adamw_of_the_paper(make: Make, rollouts: Rollouts) -> None:
    options = AdamW(lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, max_grad_norm=0.05,
                    schedule="cosine", warmup_steps=2, total_steps=6)  # fmt: skip
    engine = make(trainable=True)
    mine = {n: w.clone() for n, w in engine.weights().items()}
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in mine.items()}
    for step in range(4):
        weight = fill(engine, rollouts, 2)
        gradients = {n: g / weight for n, g in engine.gradients().items()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        metrics = Metrics()
        engine.optimizer_step(options, weight, metrics)
        assert norm > 0.05, "the test wants clipping"
        assert math.isclose(metrics.values()["train/grad_norm"], norm)
        assert math.isclose(metrics.values()["train/lr"], options.rate(step))
        clipped = {n: g * 0.05 / (norm + 1e-6) for n, g in gradients.items()}
        mine, moments = reference_step(options, step, mine, moments, clipped)
        for name, value in engine.weights().items():
            torch.testing.assert_close(value, mine[name], rtol=0, atol=1e-12)
        assert not any(g.any() for g in engine.gradients().values())


def reference_step(
    options: AdamW,
    step: int,
    weights: dict[str, Tensor],
    moments: dict[str, tuple[Tensor, Tensor]],
    gradients: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Algorithm 2 of Loshchilov and Hutter 2019, with decay scaled by the learning rate."""
    rate, (first, second) = options.rate(step), options.betas
    new, kept = {}, {}
    for name, weight in weights.items():
        gradient, (mean, square) = gradients[name], moments[name]
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient**2
        unbiased = mean / (1 - first ** (step + 1))
        scale = (square / (1 - second ** (step + 1))).sqrt() + options.eps
        new[name] = weight - rate * (unbiased / scale + options.weight_decay * weight)
        kept[name] = mean, square
    return new, kept


def test_no_clipping(make: Make, rollouts: Rollouts) -> None:
    engine, metrics = make(trainable=True), Metrics()
    weight = fill(engine, rollouts, 1)
    engine.optimizer_step(AdamW(max_grad_norm=None), weight, metrics)
    assert metrics.values()["train/grad_norm"] > 0


def test_gradients_may_be_changed_in_place(make: Make, rollouts: Rollouts) -> None:
    engine = make(trainable=True)
    before = {n: w.clone() for n, w in engine.weights().items()}
    fill(engine, rollouts, 1)
    for gradient in engine.gradients().values():
        gradient.zero_()
    engine.optimizer_step(AdamW(lr=1.0), 1.0, Metrics())
    assert all(torch.equal(before[n], w) for n, w in engine.weights().items())


def test_a_rank_without_samples_has_gradients_of_zero(make: Make) -> None:
    engine = make(trainable=True)
    assert set(engine.gradients()) == set(engine.weights())
    engine.optimizer_step(AdamW(lr=1.0), 0.0, Metrics())


@pytest.mark.parametrize("head", ["lm", "value"])
def test_no_samples_have_no_gradient(make: Make, rollouts: Rollouts, head: str) -> None:
    engine = make(head, trainable=True)
    loss = LOSS if head == "lm" else ValueLoss()
    assert engine.accumulate([train_batch_of_none(rollouts)], loss, Metrics()) == 0
    assert not any(g.any() for g in engine.gradients().values())


def train_batch_of_none(rollouts: Rollouts) -> TrainBatch:
    nothing = torch.zeros(0, dtype=torch.float64)
    none = packed.select(rollouts, [])
    return TrainBatch(none, advantages=nothing, returns=nothing, reference=nothing)


def test_training_goes_on_from_a_state(make: Make, rollouts: Rollouts) -> None:
    options = AdamW(lr=1e-2, warmup_steps=4)
    engine = make(trainable=True)
    states = []
    for _ in range(4):
        states.append(engine.state())
        engine.optimizer_step(options, fill(engine, rollouts, 1), Metrics())
    other = make(seed=1, trainable=True)
    for resumed in (engine, other):
        resumed.load_state(states[2])
        for _ in range(2):
            resumed.optimizer_step(options, fill(resumed, rollouts, 1), Metrics())
    for name, value in engine.weights().items():
        torch.testing.assert_close(other.weights()[name], value, rtol=0, atol=1e-12)
    assert other.state()["training"]["steps"] == 4


def test_bfloat16_trains_in_float32(make: Make, rollouts: Rollouts) -> None:
    engine, exact = (make(dtype=d, trainable=True) for d in ("bfloat16", "float32"))
    exact.update_weights(engine.weights().items())
    narrow = replace(rollouts, logprobs=rollouts.logprobs.float())
    for trained in (engine, exact):
        assert all(g.dtype == torch.float32 for g in trained.gradients().values())
        for _ in range(12):
            batch = replace(train_batch(narrow), reference=None)
            trained.accumulate([batch], GRPOLoss(clip=100.0), Metrics())
            trained.optimizer_step(AdamW(lr=1e-5), 100.0, Metrics())
    key = "model.layers.0.mlp.up_proj.weight"
    start = make(dtype="bfloat16").weights()[key].float()
    master = engine.state()["training"]["masters"][key]
    assert torch.equal(engine.weights()[key], master.bfloat16())
    moved, expected = (master - start).flatten(), (exact.weights()[key] - start).flatten()
    assert moved.abs().mean() > 5e-5, "steps of 1e-5 would be lost in bfloat16 one by one"
    assert torch.corrcoef(torch.stack([moved, expected]))[0, 1] > 0.9


def test_new_weights_become_masters(make: Make) -> None:
    engine = make(dtype="bfloat16", trainable=True)
    engine.update_weights(make(dtype="bfloat16", seed=1).weights().items())
    engine.optimizer_step(AdamW(lr=0.0), 1.0, Metrics())
    expected = make(dtype="bfloat16", seed=1).weights()
    assert all(torch.equal(w, expected[n]) for n, w in engine.weights().items())


def test_a_gradient_that_is_no_number_stops_the_run(make: Make, rollouts: Rollouts) -> None:
    engine = make(trainable=True)
    fill(engine, rollouts, 1)
    next(iter(engine.gradients().values()))[0] = math.nan
    before = {n: w.clone() for n, w in engine.weights().items()}
    with pytest.raises(CompileError, match=r"RG0605.*gradient norm of `policy` is nan.*step 0"):
        engine.optimizer_step(AdamW(), 1.0, Metrics())
    assert all(torch.equal(before[n], w) for n, w in engine.weights().items())


def test_a_loss_that_reads_another_head_is_refused(make: Make, rollouts: Rollouts) -> None:
    with pytest.raises(CompileError, match=r"RG0503.*has head `lm`; this needs `value`"):
        make(trainable=True).accumulate([train_batch(rollouts)], ValueLoss(), Metrics())


def test_offloading_keeps_everything(make: Make, rollouts: Rollouts) -> None:
    engine = make(trainable=True)
    engine.optimizer_step(AdamW(), fill(engine, rollouts, 1), Metrics())
    before = engine.state()
    engine.offload()
    engine.load()
    after = engine.state()
    assert all(torch.equal(before["weights"][n], w) for n, w in after["weights"].items())
    engine.optimizer_step(AdamW(), fill(engine, rollouts, 1), Metrics())
