"""By how much the log-probabilities of rollout and trainer differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlinf_graph.ir.batches import Rollouts
from rlinf_graph.nodes.engine import Outputs, TrainBatch
from rlinf_graph.nodes.execution import emit
from rlinf_graph.nodes.loss import Loss
from rlinf_graph.nodes.metric import Metrics

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Compared:
    """A loss that also tells how far rollout and trainer are apart.

    For what is trained on before the first optimizer step of an iteration it emits the mean and the
    maximum, over the policy's own tokens, of the absolute difference between the log-probability
    that a token was sampled with and that of the trainer: `train/mismatch_mean` and
    `train/mismatch_max`. On-policy that is what engines, kernels and precision do; samples of older
    weights add what was learned since.
    """

    loss: Loss

    @property
    def reads(self) -> Literal["logprobs", "values"]:
        """As the loss."""
        return self.loss.reads

    @property
    def entropy(self) -> bool:
        """As the loss."""
        return self.loss.entropy

    @property
    def corrects_staleness(self) -> bool:
        """As the loss."""
        return self.loss.corrects_staleness

    def needs(self) -> dict[str, str]:
        """As the loss."""
        return self.loss.needs()

    def __call__(
        self, outputs: Outputs, batch: TrainBatch, metrics: Metrics
    ) -> tuple[Tensor, float]:
        """The loss's sum and weight."""
        samples = batch.samples
        if outputs.logprobs is not None and isinstance(samples, Rollouts):
            said = outputs.logprobs.detach()[samples.mask]
            apart = (said - samples.logprobs[samples.mask]).abs()
            emit(metrics, "train/mismatch_mean", apart)
            emit(metrics, "train/mismatch_max", apart, reduce="max")
        return self.loss(outputs, batch, metrics)
