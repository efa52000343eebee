"""The batch types of the field. Tensors of token granularity run over the whole sequence.

Position `t` of a packed field belongs to token `t` of the sequence, prompt included; what does not
apply to prompt tokens is 0 there and False in `mask`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlinf_graph.ir.batch import (
    Batch,
    Carried,
    Granularity,
    TokenBatch,
    objects,
    per_sample,
    per_token,
    projection,
)

if TYPE_CHECKING:
    from torch import Tensor


Prompt = str | list[dict[str, str]]
"""Plain text, or chat messages with `role` and `content`."""


class Prompts(Batch, granularity=Granularity.SAMPLE):
    """What a policy is asked. The engine that answers tokenizes it.

    Attributes:
        prompts: text or chat messages of each sample.
        columns: the other columns of its data set, by name; the expected answer is `truth`.
    """

    prompts: list[Prompt] = objects()
    columns: list[dict[str, Any]] = objects()


class Examples(Batch, granularity=Granularity.SAMPLE):
    """Demonstrations to learn from, as text.

    Attributes:
        prompts: as in `Prompts`.
        completions: what a model should answer.
        columns: as in `Prompts`.
    """

    prompts: list[Prompt] = objects()
    completions: list[str] = objects()
    columns: list[dict[str, Any]] = objects()


class TokenExamples(TokenBatch, granularity=Granularity.TOKEN):
    """Demonstrations, tokenized for one model.

    Attributes:
        tokens: int64, packed: prompt, completion and end token.
        mask: bool, packed; true where the token belongs to the completion.
    """

    tokens: Tensor = per_token()
    mask: Tensor = per_token()


class Rollouts(TokenBatch, granularity=Granularity.SAMPLE):
    """What a policy answered.

    Attributes:
        tokens: int64, packed: prompt and response.
        mask: bool, packed; true for the policy's own tokens.
        logprobs: behaviour log-probabilities, packed: of each of the policy's tokens under the
            distribution it was sampled from (after temperature and truncation).
        versions: int64, packed: iteration version of the weights that chose the token, -1 where
            none did.
        prompt_lengths: int64 `(n,)`.
        finished: bool `(n,)`; false where the token limit cut the response.
        temperature: float64 `(n,)`, at which the sample was drawn; 1 for greedy samples. Other
            models and the trainer score it at the same, so that ratios are 1 on-policy.
        prompts: as they were asked: texts or chat messages.
        responses: texts.
        columns: as in `Prompts`.
    """

    tokens: Tensor = per_token()
    mask: Tensor = per_token()
    logprobs: Tensor = per_token()
    versions: Tensor = per_token()
    prompt_lengths: Tensor = per_sample()
    finished: Tensor = per_sample()
    temperature: Tensor = per_sample()
    prompts: list[Prompt] = objects()
    responses: list[str] = objects()
    columns: list[dict[str, Any]] = objects()

    @property
    def response_lengths(self) -> Tensor:
        """int64 `(n,)`: tokens of each response."""
        return self.lengths - self.prompt_lengths


class Rewards(Batch, granularity=Granularity.SAMPLE):
    """One number a sample: `values`, `(n,)`."""

    values: Tensor = per_sample()


class TokenRewards(TokenBatch, granularity=Granularity.TOKEN):
    """One number a token.

    Attributes:
        values: packed.
        mask: bool, packed; true for the policy's own tokens.
        terminated: bool `(n,)`; false where the episode was cut and its last value has to be
            bootstrapped.
    """

    values: Tensor = per_token()
    mask: Tensor = per_token()
    terminated: Tensor = per_sample()


class ProximalLogprobs(TokenBatch, granularity=Granularity.TOKEN):
    """Log-probabilities, packed, of a model in training, before its first optimizer step."""

    values: Tensor = per_token()


class ReferenceLogprobs(TokenBatch, granularity=Granularity.TOKEN):
    """Log-probabilities, packed, of a frozen model."""

    values: Tensor = per_token()


class Values(TokenBatch, granularity=Granularity.TOKEN):
    """State values of a critic.

    Attributes:
        values: packed with one more than the tokens: `values[t]` is the value of the state in which
            token `t` was chosen, the last one that of the state after the last token.
        mask: bool, packed; true for the policy's own tokens.
    """

    values: Tensor = per_token(extra=1)
    mask: Tensor = per_token()


class Advantages(Batch, granularity=Granularity.SAMPLE):
    """One number a sample, the same for all its tokens: `values`, `(n,)`."""

    values: Tensor = per_sample()


class TokenAdvantages(TokenBatch, granularity=Granularity.TOKEN):
    """One number a token: `values`, packed."""

    values: Tensor = per_token()


class Returns(TokenBatch, granularity=Granularity.TOKEN):
    """What a critic should have said: `values`, packed over the tokens."""

    values: Tensor = per_token()


class Weights(Carried):
    """New weights of a model.

    Attributes:
        model: the model's name.
        version: how many iterations have trained them.
    """

    model: str
    version: int


class Observations(Batch, granularity=Granularity.SAMPLE):
    """What the policy sees of each environment now; `index` is the environment's number.

    Attributes:
        values: `(n, *shape of one observation)`.
    """

    values: Tensor = per_sample()


class Actions(Batch, granularity=Granularity.SAMPLE):
    """What a policy does in each environment.

    Attributes:
        values: int64 `(n,)` of discrete actions, or float `(n, size)`.
        logprobs: behaviour log-probabilities `(n,)`.
        versions: int64 `(n,)`, iteration version of the weights that chose.
    """

    values: Tensor = per_sample()
    logprobs: Tensor = per_sample()
    versions: Tensor = per_sample()


class StepRewards(TokenBatch, granularity=Granularity.STEP):
    """One number a step, and how episodes ended there.

    Attributes:
        values: packed over the steps.
        terminated: bool, packed; the episode reached an end of the task: nothing comes after.
        truncated: bool, packed; the episode was cut here, by a time limit.
    """

    values: Tensor = per_token()
    terminated: Tensor = per_token()
    truncated: Tensor = per_token()


class Transitions(TokenBatch, granularity=Granularity.STEP):
    """What happened in each environment, step by step; a step may end an episode and begin another.

    Attributes:
        observations: packed with one more than the steps: in which actions were chosen, and the one
            that the environment shows now.
        actions, logprobs, versions: as in `Actions`, packed over the steps.
        reward_values: packed.
        terminated, truncated: bool, packed, as in `StepRewards`.
        finals: for each environment a list of the observations in which its episodes were
            truncated, in order: what comes next in `observations` begins a new episode.
    """

    observations: Tensor = per_token(extra=1)
    actions: Tensor = per_token()
    logprobs: Tensor = per_token()
    versions: Tensor = per_token()
    reward_values: Tensor = per_token()
    terminated: Tensor = per_token()
    truncated: Tensor = per_token()
    finals: list[list[Any]] = objects()

    @property
    def mask(self) -> Tensor:
        """bool, packed: every step is the policy's own."""
        return self.terminated | True

    @projection
    def rewards(self) -> StepRewards:
        """The rewards, with how episodes ended."""
        return StepRewards(
            index=self.index,
            group=self.group,
            lengths=self.lengths,
            values=self.reward_values,
            terminated=self.terminated,
            truncated=self.truncated,
        )


class StepValues(TokenBatch, granularity=Granularity.STEP):
    """State values of a critic along environment steps.

    Attributes:
        values: packed with one more than the steps, as `Transitions.observations`.
        finals: packed over the steps: where an episode was truncated the value of its last
            observation, 0 elsewhere.
    """

    values: Tensor = per_token(extra=1)
    finals: Tensor = per_token()


class Dialogs(Rollouts, granularity=Granularity.SAMPLE):
    """Conversations under way: what a policy said, what tools answered, turn by turn.

    A field of `Rollouts` speaks of the whole conversation so far; `responses` is what the policy
    said last. `mask` marks the policy's own tokens, of all its turns.

    Attributes:
        done: bool `(n,)`; nothing more will be said.
        turns: int64 `(n,)`: how often the policy has spoken.
        answers: what a tool answered last and the policy has not read yet; empty where none did.
    """

    done: Tensor = per_sample()
    turns: Tensor = per_sample()
    answers: list[str] = objects()


class Scalars(Batch, granularity=Granularity.SAMPLE):
    """A few numbers of the whole pipeline, such as a coefficient that adapts: `values`, `(n,)`."""

    values: Tensor = per_sample()


class Demand(Batch, granularity=Granularity.SAMPLE):
    """How much is still wanted: one sample.

    Attributes:
        groups: int64 `(1,)`, groups that are still to be found.
        found: int64 `(1,)`, groups that have been.
    """

    groups: Tensor = per_sample()
    found: Tensor = per_sample()
