"""Losses: a sum and a weight, so that a batch may be cut in any way and divided once.

Every loss here adds up numbers of the policy's own tokens, or of all steps of environments
(`TrainBatch.mask`), and divides by how many tokens or sequences there were, whichever it is told.
The runtime adds sums and weights over micro-batches and ranks and divides at the optimizer step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, cast

from rlinf_graph.ir.batches import Transitions
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.value import struct
from rlinf_graph.nodes.engine import Outputs, TrainBatch
from rlinf_graph.nodes.execution import emit
from rlinf_graph.nodes.metric import Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from rlinf_graph.ir.batches import Rollouts

Estimator = Literal["k1", "k2", "k3"]


class Loss(Protocol):
    """What `train` minimizes. Implementations are structs: frozen dataclasses of options.

    One that has a method `unread() -> tuple[str, ...]` names inputs of `train` that it does not
    look at, given its options; the compiler drops those edges, and what only they needed.
    """

    @property
    def reads(self) -> Literal["logprobs", "values"]:
        """Which output of the model it reads."""
        ...

    @property
    def entropy(self) -> bool:
        """Whether it reads the entropy of the policy."""
        ...

    @property
    def corrects_staleness(self) -> bool:
        """Whether the behaviour log-probabilities stand in it."""
        ...

    def needs(self) -> dict[str, str]:
        """The inputs of `train` that it cannot do without, each with the reason."""
        ...

    def __call__(
        self, outputs: Outputs, batch: TrainBatch, metrics: Metrics
    ) -> tuple[Tensor, float]:
        """The sum over the samples, with gradients, and the weight to divide by."""
        ...


def kl_estimate(logprobs: Tensor, others: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(p, q) from samples of p, elementwise.

    Args:
        logprobs: of p, of any shape.
        others: of q, the same shape.
        estimator: `k1` is unbiased and of high variance, `k2` is biased, never negative and of low
            variance, `k3` is unbiased and never negative (Schulman 2020, "Approximating KL
            divergence"). As a term of a loss `k1` has a gradient of zero in expectation.
    """
    ratio = others - logprobs
    if estimator == "k1":
        return -ratio
    return ratio.square() / 2 if estimator == "k2" else ratio.expm1() - ratio


@struct
class GRPOLoss:
    """The clipped surrogate of a policy with a KL term (Shao et al. 2024, DeepSeekMath, eq. 3).

    For each of the policy's tokens, with ratio `r = exp(current - old)` and advantage `A`:
    `-min(r A, clip(r, 1 - clip, 1 + clip_high) A) + kl KL(current, reference) - entropy_bonus H`.

    Attributes:
        clip: how far below 1 the ratio may pull.
        clip_high: how far above 1; as `clip` when not given (DAPO, Yu et al. 2025, raises it).
        kl: weight of the KL divergence from the reference model.
        kl_estimator: see `kl_estimate`.
        normalize: `token` divides by the policy's tokens of the minibatch (DAPO), `sequence` by its
            sequences after a mean within each (DeepSeekMath), `length` by its sequences times the
            constant `length` (Dr. GRPO, Liu et al. 2025).
        length: for `normalize="length"`: tokens, usually the limit of the rollout.
        old: whose log-probabilities stand in the ratio: those the tokens were sampled with
            (`behaviour`), those of the model before its first optimizer step of the iteration
            (`proximal`, an input of `train`), or its own at each step (`current`: a plain policy
            gradient, the ratio is 1).
        entropy_bonus: weight of the policy's entropy.
        dual_clip: bound, over 1, of the ratio where the advantage is negative (Ye et al. 2020).
        truncate: with `proximal` or `current`: weigh each token by the ratio from the behaviour
            policy to that one, at most this (Yao et al. 2025; the decoupled objective of Hilton et
            al. 2022, truncated).
        mask: instead of `truncate`: weigh by that ratio, and leave out what it is too far from 1
            for: `token`: tokens with a ratio over `mask` or under `1 / mask` (IcePop, Ling Team
            2025, "Small leak can sink a great ship"). `sequence`: sequences whose product of
            ratios, which is then the weight, is over `mask` (Liu, Li et al. 2025, "When speed kills
            stability"). What is left out still counts in what the loss is divided by.
        mask_by: what `mask` leaves out.
    """

    clip: float = 0.2
    clip_high: float | None = None
    kl: float = 0.0
    kl_estimator: Estimator = "k3"
    normalize: Literal["token", "sequence", "length"] = "token"
    length: int | None = None
    old: Literal["behaviour", "proximal", "current"] = "behaviour"
    entropy_bonus: float = 0.0
    dual_clip: float | None = None
    truncate: float | None = None
    mask: float | None = None
    mask_by: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        name = type(self).__name__
        if self.normalize == "length" and not self.length:
            help_ = (f'{name}(normalize="length", length=8192)',)
            raise fail("RG0104", f'{name}: normalize="length" needs `length`', help=help_)
        given = [option for option in ("truncate", "mask") if getattr(self, option) is not None]
        if given and self.old == "behaviour":
            message = f"{name}: `{given[0]}` corrects from the behaviour policy, which `old` names"
            raise fail("RG0104", message, help=('old="proximal" or old="current"',))
        if len(given) > 1:
            raise fail("RG0104", f"{name}: `truncate` and `mask` are two ways to the same end",
                       help=("one of the two",))  # fmt: skip
        if self.mask is not None and self.mask <= 1:
            raise fail("RG0104", f"{name}: `mask` is {self.mask}; it has to be over 1")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise fail("RG0104", f"{name}: `dual_clip` is {self.dual_clip}; it has to be over 1")

    @property
    def reads(self) -> Literal["logprobs", "values"]:
        """Log-probabilities."""
        return "logprobs"

    @property
    def entropy(self) -> bool:
        """Whether there is an entropy bonus."""
        return self.entropy_bonus != 0

    @property
    def corrects_staleness(self) -> bool:
        """True where the ratio, or another weight, begins at the behaviour policy."""
        return self.old == "behaviour" or self.truncate is not None or self.mask is not None

    def needs(self) -> dict[str, str]:
        """Advantages always; a reference and the proximal policy as the options say."""
        needed = {"targets": "a policy learns from advantages, such as those of group_advantages"}
        if self.kl:
            needed["reference"] = f"kl={self.kl} pulls towards a reference: rl.logprobs(frozen, …)"
        if self.old == "proximal":
            needed["proximal"] = 'old="proximal" puts it in the ratio: rl.logprobs(model, …)'
        return needed

    def unread(self) -> tuple[str, ...]:
        """A reference without a KL term, and log-probabilities that `old` does not name."""
        kl, proximal = self.kl != 0, self.old == "proximal"
        return _without(reference=kl, proximal=proximal, old_values=False)

    def __call__(
        self, outputs: Outputs, batch: TrainBatch, metrics: Metrics
    ) -> tuple[Tensor, float]:
        """Sum over the policy's tokens and what to divide it by."""
        samples = cast("Rollouts | Transitions", batch.samples)
        logprobs, behaviour = _own(outputs.logprobs, batch), _own(samples.logprobs, batch)
        old = self._old(logprobs, behaviour, batch)
        log_ratio = logprobs - old
        ratio = log_ratio.exp()
        loss, clipped = self._surrogate(ratio, _own(batch.advantages, batch))
        if self.truncate is not None:
            loss = loss * (old - behaviour).exp().clamp(max=self.truncate)
        elif self.mask is not None:
            weights = self._masked(old - behaviour, batch, self.mask)
            emit(metrics, "train/masked_fraction", (weights == 0).to(weights.dtype))
            loss = loss * weights
        if batch.reference is not None:
            reference = _own(batch.reference, batch)
            emit(metrics, "train/kl", kl_estimate(logprobs.detach(), reference, "k3"))
            if self.kl:
                loss = loss + self.kl * kl_estimate(logprobs, reference, self.kl_estimator)
        if outputs.entropy is not None:
            entropy = _own(outputs.entropy, batch)
            emit(metrics, "train/entropy", entropy)
            loss = loss - self.entropy_bonus * entropy
        emit(metrics, "train/clip_fraction", clipped)
        emit(metrics, "train/ratio_max", ratio, reduce="max")
        emit(metrics, "train/kl_old", kl_estimate(old, logprobs.detach(), "k3"))
        if self.normalize == "length":
            total, weight = loss.sum() / cast("int", self.length), float(len(samples))
        else:
            total, weight = normalized(loss, batch, self.normalize)
        _emit_loss(metrics, "train/loss", total, weight)
        return total, weight

    def _masked(self, apart: Tensor, batch: TrainBatch, bound: float) -> Tensor:
        """The ratio from the behaviour policy of each token or sequence; 0 for what is left out."""
        if self.mask_by == "token":
            ratio = apart.exp()
            return ratio.where((ratio <= bound) & (ratio >= 1 / bound), 0.0)
        owner = _owners(batch)
        sums = apart.new_zeros(len(batch.samples)).index_add(0, owner, apart)
        ratio = sums.exp()[owner]
        return ratio.where(ratio <= bound, 0.0)

    def _old(self, logprobs: Tensor, behaviour: Tensor, batch: TrainBatch) -> Tensor:
        if self.old == "behaviour":
            return behaviour
        if self.old == "current":
            return logprobs.detach()
        return _own(batch.proximal, batch)

    def _surrogate(self, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """The negative surrogate of each token, and whether it is one that clipping holds."""
        high = self.clip if self.clip_high is None else self.clip_high
        free = ratio * advantages
        held = ratio.detach().clamp(1 - self.clip, 1 + high) * advantages
        clipped = held < free  # only where the ratio is out of bounds: no gradient
        loss = -held.where(clipped, free)
        if self.dual_clip is not None:
            bound = -self.dual_clip * advantages
            over = (advantages < 0) & (loss > bound)
            loss, clipped = bound.where(over, loss), clipped | over
        return loss, clipped


@struct
class PPOLoss(GRPOLoss):
    """The clipped surrogate under the name of its first paper (Schulman et al. 2017, eq. 7).

    The same family as `GRPOLoss`, with its options: the two differ in where advantages come from,
    and PPO's KL penalty usually stands in the rewards (`rl.kl_penalty`).
    """


@struct
class ValueLoss:
    """Half the squared error of a critic, over the policy's tokens.

    Attributes:
        clip: where `train` is given `old_values`: how far from them the new values may pull; the
            larger of the clipped and the unclipped error counts, as in OpenAI's baselines. Without
            `old_values`, or with None, nothing is clipped.
        normalize: `token` or `sequence`, as in `GRPOLoss`.
    """

    clip: float | None = 0.2
    normalize: Literal["token", "sequence"] = "token"

    @property
    def reads(self) -> Literal["logprobs", "values"]:
        """State values."""
        return "values"

    @property
    def entropy(self) -> bool:
        """It reads none."""
        return False

    @property
    def corrects_staleness(self) -> bool:
        """False: returns of an older policy are taken as they are."""
        return False

    def needs(self) -> dict[str, str]:
        """Returns."""
        return {"targets": "a critic learns returns, such as those of gae"}

    def unread(self) -> tuple[str, ...]:
        """What a policy's loss reads, and old values where nothing is clipped."""
        return _without(reference=False, proximal=False, old_values=self.clip is not None)

    def __call__(
        self, outputs: Outputs, batch: TrainBatch, metrics: Metrics
    ) -> tuple[Tensor, float]:
        """Sum over the policy's tokens and what to divide it by."""
        values, returns = _own(outputs.values, batch), _own(batch.returns, batch)
        error = (values - returns).square()
        if self.clip is not None and batch.old_values is not None:
            old = _own(batch.old_values, batch)
            near = old + (values - old).clamp(-self.clip, self.clip)
            held = (near - returns).square()
            emit(metrics, "value/clip_fraction", held > error)
            error = error.maximum(held)
        total, weight = normalized(error / 2, batch, self.normalize)
        _emit_loss(metrics, "value/loss", total, weight)
        emit(metrics, "value/mean", values)
        emit(metrics, "value/return", returns)
        return total, weight


@struct
class SupervisedLoss:
    """The negative log-likelihood of completions, or of a policy's own tokens.

    Attributes:
        normalize: `token` or `sequence`, as in `GRPOLoss`.
    """

    normalize: Literal["token", "sequence"] = "token"

    @property
    def reads(self) -> Literal["logprobs", "values"]:
        """Log-probabilities."""
        return "logprobs"

    @property
    def entropy(self) -> bool:
        """It reads none."""
        return False

    @property
    def corrects_staleness(self) -> bool:
        """False: it takes every token at its word."""
        return False

    def needs(self) -> dict[str, str]:
        """Nothing but the samples."""
        return {}

    def unread(self) -> tuple[str, ...]:
        """Everything but the samples."""
        return _without(targets=False, reference=False, proximal=False, old_values=False)

    def __call__(
        self, outputs: Outputs, batch: TrainBatch, metrics: Metrics
    ) -> tuple[Tensor, float]:
        """Sum over the tokens learned and what to divide it by."""
        loss = -_own(outputs.logprobs, batch)
        total, weight = normalized(loss, batch, self.normalize)
        _emit_loss(metrics, "train/loss", total, weight)
        return total, weight


def normalized(
    terms: Tensor, batch: TrainBatch, normalize: Literal["token", "sequence"]
) -> tuple[Tensor, float]:
    """Sum and weight of one number for each of the policy's tokens.

    Args:
        terms: `(mask.sum(),)`, in the order of the tokens.
        batch: whose tokens they are.
        normalize: `token`: the sum, and the number of tokens. `sequence`: the sum of the means
            within sequences, and the number of sequences that have any token.
    """
    if normalize == "token":
        return terms.sum(), float(len(terms))
    owner = _owners(batch)
    counts = owner.bincount(minlength=len(batch.samples))
    return (terms / counts[owner]).sum(), float((counts > 0).sum())


def _owners(batch: TrainBatch) -> Tensor:
    """int64: of each of the policy's own tokens, or steps, the sample that it belongs to."""
    samples = batch.samples
    rows = samples.lengths.new_ones(len(samples)).cumsum(0) - 1
    return _own(rows.repeat_interleave(samples.lengths), batch)


def _without(**read: bool) -> tuple[str, ...]:
    return tuple(name for name, is_read in read.items() if not is_read)


def _own(values: Tensor | None, batch: TrainBatch) -> Tensor:
    """Of packed values those of the policy's own tokens; of the steps of environments all are."""
    if values is None:  # `needs` has made sure that it was given
        raise ValueError("the loss reads an input that `train` was not given")
    return values if isinstance(batch.samples, Transitions) else values[batch.mask]


def _emit_loss(metrics: Metrics, name: str, total: Tensor, weight: float) -> None:
    if weight:
        emit(metrics, name, float(total.detach()) / weight, weight=weight)
