"""Seconds of a weight sync by what they are spent on, and the bytes that it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlinf_graph.compiler.cost.constants import COLLECTIVE
from rlinf_graph.compiler.cost.iteration_constants import IterationConstants
from rlinf_graph.compiler.cost.links import Ring
from rlinf_graph.compiler.cost.passes import Parts
from rlinf_graph.compiler.cost.shapes import ModelShape

Method = Literal["copy", "broadcast", "delta", "adapter"]
INDEX_BYTES = 4
"""Of the position of a changed weight, as an offset within its matrix."""


@dataclass(frozen=True)
class Refit:
    """New weights on their way from a trainer to those who sample with them.

    Attributes:
        shape: of the model.
        weights: that are sent; those of the adapters for `adapter`.
        element: bytes of one.
        ring: all devices that take part.
        bandwidth: bytes a second at which they write their memory.
        constants: of the iteration.
        changed: share of the weights that differ from the last version, for `delta`.
    """

    shape: ModelShape
    weights: float
    element: float
    ring: Ring
    bandwidth: float
    constants: IterationConstants
    changed: float = 1.0

    @property
    def bytes(self) -> float:
        """What every receiver gets: all weights, or those that changed with their positions."""
        whole = self.weights * self.element
        if self.changed >= 1:
            return whole
        return min(whole, self.weights * self.changed * (self.element + INDEX_BYTES))

    def parts(self) -> Parts:
        """Seconds by cause.

        Every device writes the new weights once, after reading them. Between devices the trainer's
        shards are gathered and sent in buckets, in a pipeline: through the slowest link on the way
        at the share of its bandwidth that refits reach, and with host time for each matrix, which
        is named, converted and put into its bucket.
        """
        parts: Parts = {"weights": 2 * self.bytes / self.bandwidth}
        if self.ring.size > 1:
            sent = self.ring.broadcast(self.bytes) * COLLECTIVE / self.constants.refit
            parts["weight transfer"] = sent
            parts["weight launches"] = self.constants.matrix_s * matrices(self.shape)
        return parts


def matrices(shape: ModelShape) -> int:
    """Matrices of a model as they are named outside: projections, and three of every expert."""
    projections = 6 if shape.kv_rank else 4
    dense = 3 * (shape.layers - shape.expert_layers)
    experts = shape.expert_layers * (3 * shape.experts + 1 + 3 * min(1, shape.shared_experts))
    return shape.layers * projections + dense + experts + (1 if shape.tied else 2)
