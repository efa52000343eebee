"""Losses: a sum and a weight, so that a batch may be cut in any way and divided once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from rlinf_graph.ir.value import struct
from rlinf_graph.nodes.engine import Outputs, TrainBatch
from rlinf_graph.nodes.metric import Metrics

if TYPE_CHECKING:
    from torch import Tensor


class Loss(Protocol):
    """What `train` minimizes. Implementations are structs: frozen dataclasses of options."""

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
        """Whether behaviour or proximal log-probabilities stand in it."""
        ...

    def needs(self) -> dict[str, str]:
        """The inputs of `train` that it cannot do without, each with the reason."""
        ...

    def __call__(
        self, outputs: Outputs, batch: TrainBatch, metrics: Metrics
    ) -> tuple[Tensor, float]:
        """The sum over the samples, with gradients, and the weight to divide by."""
        ...


@struct
class GRPOLoss:
    """Placeholder of the interface; see the module's history."""

    kl: float = 0.0
