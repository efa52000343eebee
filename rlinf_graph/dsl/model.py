"""Models as the user names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlinf_graph.ir.span import Span, caller

Head = Literal["lm", "value", "score"]


@dataclass(frozen=True, eq=False)
class Model:
    """A versioned register of weights, with a trained port and a served one.

    Args:
        path: a Hugging Face hub name, or a folder with `config.json` (and weights and tokenizer).
        name: what explain calls it; by default the variable it is bound to.
        head: what it computes from hidden states: `lm` (next-token logits), `value` (one number
            for each position) or `score` (one number for the sequence).
        weights: `pretrained`, or `random` for a new model of the shape in `config.json`; the seed
            of the run decides which.
        dtype: `auto` (bfloat16 on GPUs, float32 on CPUs), `float64`, `float32` or `bfloat16`.
        rollout: the engine that samples from it; the compiler chooses when it is not given.
        train: the engine that trains it; likewise.
    """

    path: str
    name: str | None = None
    head: Head = "lm"
    weights: Literal["pretrained", "random"] = "pretrained"
    dtype: Literal["auto", "float64", "float32", "bfloat16"] = "auto"
    rollout: str | None = None
    train: str | None = None
    span: Span = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Remember where the model was declared."""
        object.__setattr__(self, "span", Span.of_frame(caller(2)))

    def frozen(self) -> Frozen:
        """This model with the weights it had when the run began, such as a KL reference."""
        return Frozen(self)


@dataclass(frozen=True, eq=False)
class Frozen:
    """A model whose weights never change."""

    model: Model
