"""Models as the user names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from rlinf_graph.dsl.env import Env
from rlinf_graph.ir.diagnostic import fail, suggest
from rlinf_graph.ir.span import Span, caller

Head = Literal["lm", "value", "score", "action"]
Weights = Literal["pretrained", "random"]
Dtype = Literal["auto", "float64", "float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class Model:
    """A versioned register of weights, with a trained port and a served one.

    Args:
        path: a Hugging Face hub name, or a folder with `config.json` (and weights and tokenizer);
            or a small network for observations that are vectors: `mlp:64x64` has two hidden layers.
        name: what explain calls it; by default the variable it is bound to.
        head: what it computes from hidden states: `lm` (next-token logits), `value` (one number
            for each position), `score` (one number for the sequence) or `action` (a distribution
            over the environment's actions: categorical or Gaussian, as its action space is).
        weights: `pretrained`, or `random` for a new model of the shape in `config.json`; the seed
            of the run decides which.
        dtype: `auto` (bfloat16 on GPUs, float32 on CPUs), `float64`, `float32` or `bfloat16`.
        rollout: the engine that samples from it; the compiler chooses when it is not given.
        train: the engine that trains it; likewise.
        env: the environment whose observations and actions a small network is made for.
    """

    path: str
    name: str | None = None
    head: Head = "lm"
    weights: Weights = "pretrained"
    dtype: Dtype = "auto"
    rollout: str | None = None
    train: str | None = None
    env: Env | None = None
    span: Span = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Remember where the model was declared, and refuse what no model can be.

        Raises:
            CompileError: RG0104, for a value that the parameter does not take.
        """
        span = Span.of_frame(caller(2))
        object.__setattr__(self, "span", span)
        for field_name, choices in CHOICES.items():
            value = getattr(self, field_name)
            if value not in choices:
                message = f"`{field_name}` of a model is {value!r}"
                shown = suggest(str(value), choices)
                raise fail("RG0104", message, span.argument(field_name, FIELDS), help=(shown,))
        if not isinstance(self.path, str) or not self.path:  # pyright: ignore[reportUnnecessaryIsInstance]  users may not run a checker
            message = f"a model's path is text, not {self.path!r}"
            help_text = ("a hub name such as Qwen/Qwen2.5-0.5B, or a folder with config.json",)
            raise fail("RG0104", message, span.argument("path", FIELDS), help=help_text)
        if self.path.startswith(SMALL) and self.env is None:
            message = f"`{self.path}` is made for an environment, and `env` names none"
            help_text = (f'rl.Model("{self.path}", head="action", env=env) with env = rl.Env(...)',)
            raise fail("RG0104", message, span.argument("path", FIELDS), help=help_text)

    def frozen(self) -> Frozen:
        """This model with the weights it had when the run began, such as a KL reference."""
        return Frozen(self)

    def served(self, name: str, decay: float = 0.0) -> Served:
        """A served port of its own: the first weights, until a sync of its own delivers others.

        Args:
            name: of the port; unique among those of the model.
            decay: what it keeps of its own weights at each delivery, from 0 up to, but not, 1:
                `own = decay own + (1 - decay) new`. 0 takes over the new ones: a reference that is
                refreshed. More is an exponential average.

        Raises:
            CompileError: RG0104, for a name that is none.
        """
        if not isinstance(name, str) or not name.strip():  # pyright: ignore[reportUnnecessaryIsInstance]  users may not run a checker
            message = f"a served port's name is text, not {name!r}"
            help_text = ('policy.served("reference")',)
            raise fail("RG0104", message, Span.of_frame(caller()), help=help_text)
        return Served(self, name, decay)


CHOICES = {"head": get_args(Head), "weights": get_args(Weights), "dtype": get_args(Dtype)}
FIELDS = ("path", "name", "head", "weights", "dtype", "rollout", "train", "env")
SMALL = "mlp:"
"""Begins the path of a small network; its weights are always new ones."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """A model whose weights never change."""

    model: Model


@dataclass(frozen=True, eq=False)
class Served:
    """A named served port of a model, as `Model.served` makes it."""

    model: Model
    name: str
    decay: float = 0.0
