"""Losses against sums written from the papers, one token after another, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlinf_graph import rl
from rlinf_graph.nodes.engine import Outputs, TrainBatch
from rlinf_graph.nodes.loss import kl_estimate
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.mismatch import Compared
from tests.nodes.conftest import cut, random_batch

CLOSE = {"rel": 1e-9, "abs": 1e-9}

POLICY_LOSSES = [
    rl.GRPOLoss(),
    rl.PPOLoss(clip=0.1, clip_high=0.3),
    rl.GRPOLoss(kl=0.04, kl_estimator="k1"),
    rl.GRPOLoss(kl=0.04, kl_estimator="k2", normalize="sequence"),
    rl.GRPOLoss(kl=0.04, normalize="sequence", entropy_bonus=0.01),
    rl.GRPOLoss(normalize="length", length=64, kl=0.1),
    rl.GRPOLoss(dual_clip=1.2),
    rl.GRPOLoss(old="proximal"),
    rl.GRPOLoss(old="proximal", truncate=1.1),
    rl.GRPOLoss(old="current", truncate=1.5, normalize="sequence"),
    rl.GRPOLoss(old="current", mask=1.3),
    rl.GRPOLoss(old="proximal", mask=1.5, mask_by="sequence"),
]


def tokens_of(batch: TrainBatch) -> list[list[int]]:
    """For each sequence the packed positions of the policy's own tokens."""
    starts = [0, *batch.samples.lengths.cumsum(0).tolist()]
    spans = [range(a, b) for a, b in itertools.pairwise(starts)]
    return [[t for t in span if batch.samples.mask[t]] for span in spans]


def masked_weight(loss: rl.GRPOLoss, batch: Any, logprobs: Tensor, t: int) -> float:
    """IcePop's mask of a token; the mask of a sequence by its product of ratios."""
    old = batch.proximal if loss.old == "proximal" else logprobs.detach()
    apart = [float(old[i]) - float(batch.samples.logprobs[i]) for i in range(len(old))]
    if loss.mask_by == "token":
        ratio = math.exp(apart[t])
        return ratio if 1 / loss.mask <= ratio <= loss.mask else 0.0
    (row,) = (row for row in tokens_of(batch) if t in row)
    ratio = math.exp(sum(apart[i] for i in row))
    return ratio if ratio <= loss.mask else 0.0


def expected_token(
    loss: rl.GRPOLoss, batch: Any, logprobs: Tensor, entropy: Tensor, t: int
) -> float:
    """One token's term, as in Schulman et al. 2017 eq. 7, Ye et al. 2020, Shao et al. 2024."""
    current, behaviour = float(logprobs[t]), float(batch.samples.logprobs[t])
    old = {"behaviour": behaviour, "proximal": float(batch.proximal[t]), "current": current}
    ratio, advantage = math.exp(current - old[loss.old]), float(batch.advantages[t])
    high = loss.clip if loss.clip_high is None else loss.clip_high
    bounded = min(max(ratio, 1 - loss.clip), 1 + high)
    objective = min(ratio * advantage, bounded * advantage)
    if loss.dual_clip is not None and advantage < 0:
        objective = max(objective, loss.dual_clip * advantage)
    if loss.truncate is not None:
        objective *= min(math.exp(old[loss.old] - behaviour), loss.truncate)
    if loss.mask is not None:
        objective *= masked_weight(loss, batch, logprobs, t)
    reference = float(batch.reference[t])
    divergence = {
        "k1": current - reference,
        "k2": (current - reference) ** 2 / 2,
        "k3": math.exp(reference - current) - (reference - current) - 1,
    }[loss.kl_estimator]
    return -objective + loss.kl * divergence - loss.entropy_bonus * float(entropy[t])


def expected(loss: Any, terms: list[list[float]]) -> tuple[float, float]:
    if loss.normalize == "sequence":
        return sum(sum(row) / len(row) for row in terms), len(terms)
    if loss.normalize == "length":
        return sum(sum(row) for row in terms) / loss.length, len(terms)
    return sum(sum(row) for row in terms), sum(len(row) for row in terms)


@pytest.mark.parametrize("loss", POLICY_LOSSES, ids=str)
def test_policy_losses_are_those_of_the_papers(loss: rl.GRPOLoss) -> None:
    batch, logprobs, entropy, _ = random_batch()
    outputs = Outputs(logprobs=logprobs, entropy=entropy if loss.entropy else None)
    total, weight = loss(outputs, batch, Metrics())
    rows = tokens_of(batch)
    terms = [[expected_token(loss, batch, logprobs, entropy, t) for t in row] for row in rows]
    assert (float(total), weight) == pytest.approx(expected(loss, terms), **CLOSE)


@pytest.mark.parametrize("loss", [x for x in POLICY_LOSSES if x.old != "current"], ids=str)
def test_gradients_are_those_of_the_papers(loss: rl.GRPOLoss) -> None:
    """Central differences of the reference; nothing of `old` or of the truncation is a variable."""
    batch, logprobs, entropy, _ = random_batch(4)
    logprobs.requires_grad_()
    outputs = Outputs(logprobs=logprobs, entropy=entropy if loss.entropy else None)
    loss(outputs, batch, Metrics())[0].backward()
    assert logprobs.grad is not None
    rows = tokens_of(batch)
    shares = {t: len(row) if loss.normalize == "sequence" else 1 for row in rows for t in row}
    for t, share in shares.items():
        step = 1e-6
        ends = []
        for way in (step, -step):
            moved = logprobs.detach().clone()
            moved[t] += way
            ends.append(expected_token(loss, batch, moved, entropy, t))
        divisor = loss.length if loss.normalize == "length" else share
        slope = (ends[0] - ends[1]) / (2 * step) / (divisor or 1)
        assert float(logprobs.grad[t]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_masks_leave_something_out_and_something_in() -> None:
    batch, logprobs, _, _ = random_batch()
    for by in ("token", "sequence"):
        metrics = Metrics()
        loss = rl.GRPOLoss(old="proximal", mask=1.02, mask_by=by)
        loss(Outputs(logprobs=logprobs), batch, metrics)
        assert 0 < metrics.values()["train/masked_fraction"] < 1


def test_the_mismatch_of_rollout_and_trainer_is_told() -> None:
    batch, logprobs, _, _ = random_batch()
    metrics, plain = Metrics(), Metrics()
    made = Compared(rl.GRPOLoss())(Outputs(logprobs=logprobs), batch, metrics)
    assert made == rl.GRPOLoss()(Outputs(logprobs=logprobs), batch, plain)
    own = batch.samples.mask
    apart = (logprobs - batch.samples.logprobs)[own].abs()
    told = metrics.values()
    assert told["train/mismatch_mean"] == pytest.approx(float(apart.mean()))
    assert told["train/mismatch_max"] == pytest.approx(float(apart.max()))
    assert told.keys() - plain.values().keys() == {"train/mismatch_mean", "train/mismatch_max"}


def test_current_is_a_plain_policy_gradient() -> None:
    batch, logprobs, _, _ = random_batch(4)
    logprobs.requires_grad_()
    rl.GRPOLoss(old="current")(Outputs(logprobs=logprobs), batch, Metrics())[0].backward()
    assert batch.advantages is not None
    assert torch.allclose(logprobs.grad, -batch.advantages * batch.samples.mask, atol=1e-12)


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("normalize", ["token", "sequence"])
def test_value_loss_is_the_larger_error(clip: float | None, normalize: Any) -> None:
    batch, _, _, values = random_batch()
    loss = rl.ValueLoss(clip=clip, normalize=normalize)
    total, weight = loss(Outputs(values=values), batch, Metrics())

    def term(t: int) -> float:
        value, old, goal = (float(x[t]) for x in (values, batch.old_values, batch.returns))
        errors = [(value - goal) ** 2]
        if clip is not None:
            errors.append((old + min(max(value - old, -clip), clip) - goal) ** 2)
        return 0.5 * max(errors)

    terms = [[term(t) for t in row] for row in tokens_of(batch)]
    assert (float(total), weight) == pytest.approx(expected(loss, terms), **CLOSE)


def test_value_loss_without_old_values_is_not_clipped() -> None:
    batch, _, _, values = random_batch()
    bare = TrainBatch(samples=batch.samples, returns=batch.returns)
    clipped = rl.ValueLoss(clip=0.2)(Outputs(values=values), bare, Metrics())
    free = rl.ValueLoss(clip=None)(Outputs(values=values), batch, Metrics())
    assert clipped == free


@pytest.mark.parametrize("normalize", ["token", "sequence"])
def test_supervised_loss_is_the_negative_log_likelihood(normalize: Any) -> None:
    batch, logprobs, _, _ = random_batch()
    loss = rl.SupervisedLoss(normalize=normalize)
    total, weight = loss(Outputs(logprobs=logprobs), batch, Metrics())
    terms = [[-float(logprobs[t]) for t in row] for row in tokens_of(batch)]
    assert (float(total), weight) == pytest.approx(expected(loss, terms), **CLOSE)


@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize(
    "loss", [*POLICY_LOSSES, rl.ValueLoss(), rl.ValueLoss(normalize="sequence"),
             rl.SupervisedLoss(), rl.SupervisedLoss(normalize="sequence")], ids=str,
)  # fmt: skip
def test_a_batch_in_parts_gives_the_same(loss: rl.Loss, parts: int) -> None:
    batch, logprobs, entropy, values = random_batch()
    whole = {"logprobs": logprobs, "entropy": entropy, "values": values}
    for tensor in whole.values():
        tensor.requires_grad_()
    metrics, cut_metrics = Metrics(), Metrics()
    total, weight = loss(Outputs(**whole), batch, metrics)
    sums, weights = 0.0, 0.0
    gradients = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    total.backward()
    for name, tensor in whole.items():
        if tensor.grad is not None:
            gradients[name] = tensor.grad.clone()
            tensor.grad.zero_()
    for part, outputs in cut(batch, whole, parts):
        partial, share = loss(outputs, part, cut_metrics)
        partial.backward()
        sums, weights = sums + float(partial.detach()), weights + share
    assert sums == pytest.approx(float(total.detach()), rel=1e-12)
    assert weights == weight
    for name, tensor in whole.items():
        if tensor.grad is not None:
            assert torch.allclose(tensor.grad, gradients[name], rtol=0, atol=1e-12)
    assert cut_metrics.values() == pytest.approx(metrics.values(), rel=1e-9)


def test_kl_estimators_agree_with_the_divergence_of_two_normals() -> None:
    """k1 and k3 are unbiased; k2 is close for close distributions (Schulman 2020)."""
    draws = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = 0.1
    own, other = -draws.square() / 2, -(draws - mean).square() / 2
    exact = mean**2 / 2
    for estimator in ("k1", "k2", "k3"):
        estimate = float(kl_estimate(own, other, estimator).mean())
        assert estimate == pytest.approx(exact, rel=0.1)
    assert float(kl_estimate(own, other, "k3").min()) >= 0


def test_metrics_of_a_policy_loss() -> None:
    batch, logprobs, entropy, _ = random_batch()
    metrics = Metrics()
    rl.GRPOLoss(entropy_bonus=0.1)(Outputs(logprobs=logprobs, entropy=entropy), batch, metrics)
    made, mask = metrics.values(), batch.samples.mask
    ratio = (logprobs - batch.samples.logprobs)[mask].exp()
    assert made["train/ratio_max"] == pytest.approx(float(ratio.max()))
    assert made["train/entropy"] == pytest.approx(float(entropy[mask].mean()))
    assert batch.advantages is not None
    advantages = batch.advantages[mask]
    held = ((ratio > 1.2) & (advantages > 0)) | ((ratio < 0.8) & (advantages < 0))
    assert made["train/clip_fraction"] == pytest.approx(float(held.double().mean()))


def test_a_sequence_without_own_tokens_counts_for_nothing() -> None:
    batch, logprobs, _, _ = random_batch(4)
    batch.samples.mask[: int(batch.samples.lengths[0])] = False
    total, weight = rl.SupervisedLoss(normalize="sequence")(
        Outputs(logprobs=logprobs), batch, Metrics()
    )
    assert weight == 3
    assert math.isfinite(float(total))


@pytest.mark.parametrize(
    ("loss", "needed"),
    [
        (rl.GRPOLoss(), {"targets"}),
        (rl.GRPOLoss(kl=0.1), {"targets", "reference"}),
        (rl.GRPOLoss(old="proximal"), {"targets", "proximal"}),
        (rl.ValueLoss(), {"targets"}),
        (rl.SupervisedLoss(), set()),
    ],
    ids=str,
)
def test_a_loss_says_what_it_needs(loss: rl.Loss, needed: set[str]) -> None:
    assert set(loss.needs()) == needed


@pytest.mark.parametrize(
    ("loss", "unread"),
    [
        (rl.GRPOLoss(), {"reference", "proximal", "old_values"}),
        (rl.GRPOLoss(kl=0.1, old="proximal"), {"old_values"}),
        (rl.ValueLoss(), {"reference", "proximal"}),
        (rl.ValueLoss(clip=None), {"reference", "proximal", "old_values"}),
        (rl.SupervisedLoss(), {"targets", "reference", "proximal", "old_values"}),
    ],
    ids=str,
)
def test_a_loss_says_what_it_does_not_read(loss: Any, unread: set[str]) -> None:
    assert set(loss.unread()) == unread
    assert not unread & set(loss.needs())


def test_only_behaviour_log_probabilities_correct_staleness() -> None:
    assert rl.GRPOLoss().corrects_staleness
    assert rl.GRPOLoss(old="proximal", truncate=2.0).corrects_staleness
    assert not rl.GRPOLoss(old="proximal").corrects_staleness
    assert not rl.GRPOLoss(old="current").corrects_staleness


@pytest.mark.parametrize(
    "options", [{"normalize": "length"}, {"truncate": 2.0}, {"dual_clip": 1.0}], ids=str
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(rl.CompileError, match="RG0104"):
        rl.GRPOLoss(**options)
