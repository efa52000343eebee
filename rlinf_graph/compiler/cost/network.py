"""The shape of a small network, in the terms in which transformers are costed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.dsl.model import SMALL
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef


@dataclass(frozen=True)
class NetworkShape(ModelShape):
    """A multilayer perceptron: no attention, no vocabulary, a head that is one of its matrices.

    Attributes:
        weights: of all matrices and biases.
        launches: host time of a layer, in layers of a transformer.
    """

    weights: int = 0
    launches: ClassVar[float] = 0.1

    @cached_property
    def dense_matrices(self) -> int:
        """Every weight is multiplied with every sample."""
        return self.weights

    @cached_property
    def attention_matrices(self) -> int:
        """It has none."""
        return 0

    @cached_property
    def vectors(self) -> int:
        """Biases count as weights."""
        return 0

    def head_matrix(self, head: str) -> int:  # noqa: ARG002  of every head alike
        """The head is one of its layers."""
        return 0


def network_shape(model: ModelDef) -> NetworkShape:
    """The shape of `mlp:64x64` for the environment that the model is made for.

    Raises:
        CompileError: RG0404, for a text of another form.
    """
    try:
        hidden = [int(size) for size in filter(None, model.path.removeprefix(SMALL).split("x"))]
        if any(size < 1 for size in hidden):
            raise ValueError
    except ValueError:
        message = f"`{model.path}` names no network"
        help_text = ("write the sizes of the hidden layers: mlp:64x64",)
        raise fail("RG0404", message, model.span, help=help_text) from None
    seen = model.observation.size if model.observation else 0
    made = 1
    if model.head == "action" and model.action is not None:
        made = model.action.choices or 2 * model.action.size
    sizes = [seen, *hidden, made]
    weights = sum((a + 1) * b for a, b in pairwise(sizes))
    return NetworkShape(
        layers=len(sizes) - 1,
        hidden=max([*hidden, made]),
        heads=1,
        kv_heads=1,
        head_dim=0,
        intermediate=math.ceil(sum(hidden) / len(sizes)),
        vocab=0,
        tied=True,
        weights=weights,
    )
