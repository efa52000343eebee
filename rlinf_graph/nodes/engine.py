"""What a node asks of an engine. Engines implement this; nothing here knows one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from rlinf_graph.ir.batches import (
    Actions,
    Dialogs,
    Observations,
    Prompt,
    Prompts,
    Rollouts,
    TokenExamples,
    Transitions,
)
from rlinf_graph.ir.diagnostic import fail, suggest
from rlinf_graph.ir.graph import ModelDef

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from rlinf_graph.nodes.loss import Loss
    from rlinf_graph.nodes.metric import Metrics
    from rlinf_graph.nodes.optimizer import AdamW


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        samples: responses to each prompt.
        max_tokens: at most that many tokens a response.
        temperature: of the softmax; 0 is greedy.
        top_p: smallest set of tokens with at least this probability; 1 keeps all.
        stop: texts that end a response; the tokenizer's end token always does.
        keep: return only that many of a prompt's responses, those that finish first: with the
            fewest tokens, among equals the first drawn, and those that the token limit cut last.
            None: all.
    """

    samples: int = 1
    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    keep: int | None = None

    @property
    def returned(self) -> int:
        """Responses to each prompt that come back."""
        return self.samples if self.keep is None else self.keep


@dataclass(frozen=True)
class Key:
    """Names a stream of random draws; the sample's index and the token's position complete it.

    `steps` are the places in the loops around the node, outermost first.
    """

    seed: int
    node: str
    iteration: int
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainBatch:
    """One micro-batch of one rank, and what its loss needs. Packed over whole sequences.

    Attributes:
        samples: the sequences, or the steps of environments.
        advantages: packed; per-sample advantages are spread over the tokens.
        returns: packed, for value losses.
        old_values: packed over the tokens, for clipped value losses.
        reference, proximal: log-probabilities, packed.
    """

    samples: Rollouts | TokenExamples | Transitions
    advantages: Tensor | None = None
    returns: Tensor | None = None
    old_values: Tensor | None = None
    reference: Tensor | None = None
    proximal: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """bool, packed: the policy's own tokens; every step of an environment is its own."""
        return self.samples.mask


@dataclass(frozen=True)
class Outputs:
    """What a model says of a `TrainBatch`, with gradients, packed over the tokens or steps.

    Attributes:
        logprobs: current log-probabilities, 0 where the mask is false (head `lm`).
        entropy: of the distribution each token was drawn from, when the loss asks for it.
        values: of the state in which each token was chosen (head `value`).
    """

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class Capabilities:
    """What the compiler may ask of an engine, readable without importing it.

    Attributes:
        name: of the engine.
        roles: of `rollout`, `forward`, `train`.
        parallel: axes it can spread a model over.
        sync: methods by which it takes weights.
        offload: whether its state can leave the device.
        keyed_randomness: whether samples depend only on their `Key`.
        packages: distributions it needs.
    """

    name: str
    roles: tuple[str, ...]
    parallel: tuple[str, ...]
    sync: tuple[str, ...]
    offload: bool
    keyed_randomness: bool
    packages: tuple[str, ...] = field(default=())


class Engine(Protocol):
    """A model on one rank's devices."""

    def generate(self, prompts: Prompts, sampling: Sampling, key: Key, version: int) -> Rollouts:
        """Sample responses; `index` of a prompt's j-th is `prompt.index * returned + j`.

        Draws are keyed by `prompt.index * samples + j`, with the j of the response drawn.
        """
        ...

    def reply(self, dialogs: Dialogs, sampling: Sampling, key: Key, version: int) -> Dialogs:
        """Let the policy speak once more in each dialog, after reading `answers`."""
        ...

    def act(self, observations: Observations, key: Key, version: int, *, greedy: bool) -> Actions:
        """Choose an action in each environment; the most probable one, or the mean, if greedy."""
        ...

    def step_values(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """State values as in `StepValues`: packed, one more than the steps; and of `finals`."""
        ...

    def logprobs(self, rollouts: Rollouts) -> Tensor:
        """Log-probability of each of the policy's tokens, at its temperature, packed; else 0."""
        ...

    def values(self, rollouts: Rollouts) -> Tensor:
        """State values, packed, one more than the tokens of each sample; the first is 0."""
        ...

    def scores(self, texts: list[tuple[Prompt, str]]) -> Tensor:
        """One number for each (prompt, response), `(n,)`; tokenized by this model's tokenizer."""
        ...

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt; a list of messages goes through the chat template."""
        ...

    def tokenize_completion(self, text: str) -> list[int]:
        """Tokens of an answer, with the end token."""
        ...

    def accumulate(self, batch: TrainBatch, loss: Loss, metrics: Metrics) -> float:
        """Add the gradients of the loss's sum to those held; the loss's weight."""
        ...

    def gradients(self) -> dict[str, Tensor]:
        """The gradients held, by parameter name."""
        ...

    def optimizer_step(self, optimizer: AdamW, weight: float, metrics: Metrics) -> None:
        """Divide the gradients by `weight`, clip, update, and hold none."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The parameters and buffers by name; not copies."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite weights in place and forget what was derived from the old ones."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that training needs to go on: weights, optimizer, counters."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        ...

    def save(self, path: Path) -> None:
        """Write a folder that transformers' `from_pretrained` loads."""
        ...

    def load(self) -> None:
        """Bring weights and states onto the device."""
        ...

    def offload(self) -> None:
        """Move weights and states off the device."""
        ...


class EngineClass(Protocol):
    """Makes engines."""

    capabilities: Capabilities

    def __call__(
        self, model: ModelDef, *, seed: int, device: str, dtype: str, trainable: bool
    ) -> Engine:
        """Load a model; random weights depend on the seed and the model's name only."""
        ...


def engine_names() -> list[str]:
    """The engines that are registered."""
    return sorted(point.name for point in entry_points(group="rlinf_graph.engines"))


def runnable_axes() -> dict[str, tuple[str, ...]]:
    """The engines that are registered here and load, with the axes they spread a model over."""
    found: dict[str, tuple[str, ...]] = {}
    for point in entry_points(group="rlinf_graph.engines"):
        try:
            found[point.name] = point.load().capabilities.parallel
        except ImportError:
            continue
    return found


def engine_class(name: str) -> EngineClass:
    """The engine registered under a name (entry points of group `rlinf_graph.engines`).

    Raises:
        CompileError: RG0503, for a name that nothing registered.
    """
    known = {point.name: point for point in entry_points(group="rlinf_graph.engines")}
    if name not in known:
        raise fail("RG0503", f"there is no engine `{name}`", help=(suggest(name, known),))
    return known[name].load()
