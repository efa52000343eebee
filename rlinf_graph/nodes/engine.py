"""What nodes and backends ask of an engine. Engines implement this; nothing here knows one.

An engine that samples is a `RolloutEngine`, one that scores or trains a `TrainEngine`; the torch
engine is both, and an `ActingEngine`. What an engine can do at all is said in `Capabilities`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

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


Part = Literal["weights", "cache"]
"""What of an engine that samples can leave the device by itself: the key-value cache is one."""


@dataclass(frozen=True)
class Shard:
    """A weight, or a rectangle of one.

    Attributes:
        name: as transformers names it in a checkpoint of the model.
        shape: of the whole weight.
        offsets: where the part begins along each dimension.
        values: the part, on any device, of the type that it is trained in; not a copy.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    values: Tensor


class ModelEngine(Protocol):
    """What every engine with a model does.

    Where several processes hold a model together, each has an engine, every method is called on all
    of one replica with the same arguments, and results are taken from the replica's first process
    (tp, cp and pp 0), except of `shards` and `state`. All replicas come together only in
    `optimizer_step` of engines whose replicas are `joined`.
    """

    @property
    def version(self) -> int:
        """Of the weights: what `update_weights` was told last, first 0."""
        ...

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int = 0) -> None:
        """Overwrite weights in place, and forget what was derived from the old ones.

        Args:
            weights: whole, named as in `Shard`, on the CPU or the engine's device, of any floating
                type; they come one after another, as few at a time as fit a bucket: keep none.
                Those that do not come stay as they are.
            version: from now on.

        A prefix cache is emptied. Sleeping weights are woken, a sleeping cache is not. What is
        being sampled goes on with the new weights and marks its next tokens with the version.

        Raises:
            CompileError: RG0604, for a name that the model does not have, and for another shape.
        """
        ...

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt; a list of messages goes through the chat template."""
        ...

    def load(self) -> None:
        """Bring everything that `offload` took away back onto the device; else nothing."""
        ...

    def offload(self) -> None:
        """Free the device: weights and states go to the host, the cache goes."""
        ...


class RolloutEngine(ModelEngine, Protocol):
    """A model that speaks."""

    def generate(self, prompts: Prompts, sampling: Sampling, key: Key, version: int) -> Rollouts:
        """Sample responses; `index` of a prompt's j-th is `prompt.index * returned + j`.

        Prompts are in order, those of a prompt together. `logprobs` are of the distribution that
        was sampled from, after temperature and truncation; 0 at temperature 0. `version` marks the
        tokens. Draws are keyed by `prompt.index * samples + j`, with the j of the response drawn;
        engines with a generator of their own take a seed of `key` and that number.

        Raises:
            CompileError: RG0503, for a prompt that the tokenizer cannot read, or that leaves no
                room for a response.
        """
        ...

    def stream(
        self, prompts: Prompts, sampling: Sampling, key: Key, version: int
    ) -> Iterator[Rollouts]:
        """As `generate`, in parts: responses as they finish, in any order, told by `index`."""
        ...

    def abort(self) -> None:
        """End what another thread samples: `generate`, `stream` and `resume` return soon.

        Responses that it cut come too, with their tokens so far and `finished` false. Nothing
        happens where nothing is being sampled.
        """
        ...

    def resume(self, rollouts: Rollouts, sampling: Sampling, key: Key, version: int) -> Rollouts:
        """Go on with responses that `abort` cut, where `max_tokens` leaves room for more.

        The tokens so far are read again with the weights of now; they keep their log-probabilities
        and versions, new ones are marked with `version`. Same samples, same order.
        """
        ...

    def reply(self, dialogs: Dialogs, sampling: Sampling, key: Key, version: int) -> Dialogs:
        """Let the policy speak once more in each dialog, after reading `answers`."""
        ...

    def sleep(self, *parts: Part) -> None:
        """Take parts off the device, all without arguments; what was cached is forgotten."""
        ...

    def wake(self, *parts: Part) -> None:
        """Bring parts back that sleep, all without arguments.

        To make room in between: `sleep()`, later `wake("weights")`, `update_weights`,
        `wake("cache")`.
        """
        ...


class TrainEngine(ModelEngine, Protocol):
    """A model that scores given samples, and learns from them if it was made `trainable`."""

    def logprobs(self, rollouts: Rollouts) -> Tensor:
        """Log-probability of each of the policy's tokens, at its temperature, packed; else 0."""
        ...

    def values(self, rollouts: Rollouts) -> Tensor:
        """State values, packed, one more than the tokens of each sample; the first is 0."""
        ...

    def tokenize_completion(self, text: str) -> list[int]:
        """Tokens of an answer, with the end token."""
        ...

    def accumulate(self, batches: Sequence[TrainBatch], loss: Loss, metrics: Metrics) -> float:
        """Forward and backward: add the gradients of the loss's sums to those held.

        Args:
            batches: packed micro-batches of this replica, each one call of the loss; a pipeline
                takes them one behind the other. There may be none, and replicas may have different
                numbers of them.
            loss: called once for each, on whole sequences, with outputs of all of its tokens.
            metrics: what the losses emit; those of the replica's first process count.

        Returns:
            the sum of the loss's weights.

        Raises:
            CompileError: RG0503, for a loss that reads what the model's head does not say.
        """
        ...

    def gradients(self) -> dict[str, Tensor]:
        """The gradients held, by parameter name, to be changed in place.

        Asked of engines only whose replicas are not `joined`.
        """
        ...

    def optimizer_step(self, optimizer: AdamW, weight: float, metrics: Metrics) -> None:
        """Divide the gradients by `weight`, clip, update, and hold none.

        `weight` is that of all replicas, whose gradients are summed already. Where replicas are
        `joined` it is the replica's own, and the engine sums gradients and weights first. A sum of
        weights that is 0 divides by 1. Emits `train/grad_norm` (before clipping) and `train/lr`.

        Raises:
            CompileError: RG0605, for a gradient norm that is no finite number; nothing is changed.
        """
        ...

    def shards(self) -> Iterator[Shard]:
        """This process's parts of all weights, one after another.

        Together the processes of a replica give every element once; padding is left out, and tied
        weights come under one name. A part is valid until the next is asked for, and no process
        gathers more than one weight for it.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Copies, on the CPU, of what this process needs to go on: weights, optimizer, counters."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave in the same layout.

        Raises:
            CompileError: RG0604, for the state of another model or layout.
        """
        ...

    def save(self, path: Path) -> None:
        """Write a folder that transformers' `from_pretrained` loads, tokenizer included.

        Only the first process writes; the others hand it their parts, weight by weight.
        """
        ...


class ActingEngine(Protocol):
    """A small network that acts in environments, or a judge."""

    def act(self, observations: Observations, key: Key, version: int, *, greedy: bool) -> Actions:
        """Choose an action in each environment; the most probable one, or the mean, if greedy."""
        ...

    def step_values(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """State values as in `StepValues`: packed, one more than the steps; and of `finals`."""
        ...

    def scores(self, texts: list[tuple[Prompt, str]]) -> Tensor:
        """One number for each (prompt, response), `(n,)`; tokenized by this model's tokenizer."""
        ...


class Engine(RolloutEngine, TrainEngine, ActingEngine, Protocol):
    """An engine that does everything. A node calls what its engine's capabilities promise."""
