"""Rewards: what a sample was worth, from a function, from a model, and less a KL penalty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from rlinf_graph.dsl.model import Frozen, Model, Served
from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import ReferenceLogprobs, Rewards, Rollouts, Scalars, TokenRewards
from rlinf_graph.ir.diagnostic import Diagnostic, fail
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Unit
from rlinf_graph.ir.work import Forward, HostWork, Volume
from rlinf_graph.nodes.coefficient import one_number
from rlinf_graph.nodes.execution import engine_of, metric
from rlinf_graph.nodes.source_facts import known_columns
from rlinf_graph.nodes.verifier import Verifier, rewards_of, unfilled

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_PER_ANSWER = 20e-6
"""Of one core, to compare an answer with a truth; assumed where the user declares nothing."""

SECONDS_PER_LENGTH = 0.1e-6
"""Of one core, to compare a sample's length with a limit; an assumption."""

SECONDS_PER_TOKEN = 10e-9
"""Of one core, for a difference of log-probabilities; an assumption."""


def columns_fit(node: Node, graph: Graph, param: str) -> Iterator[Diagnostic]:
    """The verifier's parameters are columns, where the data can be looked at when planning."""
    known = known_columns(graph, node, param)
    if known is not None:
        yield from unfilled(node.option("function"), {"prompt", *known}, node.span)


def _verify_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:
    return columns_fit(node, graph, "rollouts")


def _verify_work(call: Call) -> HostWork:
    declared = call.options["seconds"]
    if declared is None:
        return HostWork(call.first.samples, SECONDS_PER_ANSWER, "declared default")
    return HostWork(call.first.samples, declared)


@node(unit=Unit.SAMPLE, work=_verify_work, check=_verify_check)
def verify(
    rollouts: Rollouts,
    function: Verifier,
    *,
    seconds: float | None = None,  # noqa: ARG001  read when planning
) -> Rewards:
    """Reward each answer with what a Python function says of it.

    Args:
        rollouts: `n` samples.
        function: from the answer to a finite number. Its other parameters are taken by name from
            the columns of the data set (`truth` is the expected answer) and `prompt`; `**columns`
            takes them all.
        seconds: what to plan with: of one core for each answer; 20 µs are assumed.

    Raises:
        CompileError: RG0506, for a parameter that is no column; RG0507, where the function raises
            or returns no finite number.
    """
    return _rewards(rollouts, rewards_of(rollouts, function))


def _score_work(call: Call) -> Forward:
    return Forward(call.first.samples, call.first.lengths, head="score")


@node(unit=Unit.SAMPLE, heads={"judge": ("score",)}, work=_score_work)
def score(judge: Model | Frozen | Served, rollouts: Rollouts) -> Rewards:
    """Reward each answer with the score of a reward model.

    Args:
        judge: a model with head `score`; it reads text, so its tokenizer may be another one.
        rollouts: `n` samples.
    """
    texts = list(zip(rollouts.prompts, rollouts.responses, strict=True))
    return _rewards(rollouts, engine_of("judge", judge).scores(texts))


def _kl_work(call: Call) -> HostWork:
    seconds = SECONDS_PER_TOKEN * call.volumes["rollouts"].lengths.mean
    return HostWork(call.first.samples, seconds, "declared default")


def _kl_unit(options: Mapping[str, Any]) -> Unit:
    """A coefficient that adapts is one number for the whole batch, and cannot be cut with it."""
    return Unit.BATCH if options["beta"] is None else Unit.SAMPLE


_ONE_OF_TWO = "rl.kl_penalty takes either `beta` or `coefficient`"


def _kl_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:  # noqa: ARG001  as every check
    """The coefficient is given once."""
    if (node.option("beta") is None) is (node.input("coefficient") is None):
        help_text = ("beta=0.05", "coefficient=beta with beta = rl.state(rl.constant(0.05))")
        yield Diagnostic("RG0104", _ONE_OF_TWO, node.span, help=help_text)


def _weight(beta: float | None, coefficient: Scalars | None) -> float:
    if beta is not None and coefficient is None:
        return beta
    if beta is not None or coefficient is None:
        raise fail("RG0104", _ONE_OF_TWO)
    return one_number("kl_penalty", coefficient)


@overload
def kl_penalty(
    rewards: Rewards, rollouts: Rollouts, reference: ReferenceLogprobs, *, beta: float
) -> TokenRewards: ...
@overload
def kl_penalty(
    rewards: Rewards, rollouts: Rollouts, reference: ReferenceLogprobs, *, coefficient: Scalars
) -> TokenRewards: ...
@node(unit=_kl_unit, work=_kl_work, check=_kl_check)
def kl_penalty(
    rewards: Rewards,
    rollouts: Rollouts,
    reference: ReferenceLogprobs,
    *,
    beta: float | None = None,
    coefficient: Scalars | None = None,
) -> TokenRewards:
    """Take from each token's reward how far the policy has moved from a reference there.

    `-beta (behaviour - reference)` log-probability on each of the policy's tokens, and the sample's
    reward on the last of them (Stiennon et al. 2020; Ouyang et al. 2022, eq. 2, per token).

    Args:
        rewards: `(n,)`.
        rollouts: the samples they were given for.
        reference: log-probabilities of the frozen model, packed.
        beta: reward for a nat of divergence.
        coefficient: the same as one number that changes, as `adapt_kl` does; makes this node wait
            for the whole batch.

    Returns:
        Packed rewards, 0 on prompts. Every sample counts as terminated, also where the token limit
        cut it: the limit is part of the task, so nothing is bootstrapped behind it.
    """
    packed.same_samples(rewards, rollouts, reference)
    divergence = (rollouts.logprobs - reference.values) * rollouts.mask
    values = -_weight(beta, coefficient) * divergence
    last, answered = packed.last_positions(rollouts.mask, rollouts.lengths)
    values[last] += rewards.values[answered].to(values.dtype)
    metric("reward/kl", divergence[rollouts.mask])
    return TokenRewards(
        index=rollouts.index,
        group=rollouts.group,
        lengths=rollouts.lengths,
        values=values,
        mask=rollouts.mask,
        terminated=rollouts.finished.new_ones(len(rollouts)),
    )


def _overlong_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:  # noqa: ARG001  as every check
    """The penalty rises inside the limit."""
    limit, buffer = node.option("limit"), node.option("buffer")
    if not 0 < buffer <= limit:
        message = f"`buffer` of `{node.name}` is {buffer}; it lies between 1 and limit={limit}"
        yield Diagnostic("RG0104", message, node.at("buffer"))


def _overlong_volume(call: Call) -> tuple[Volume, ...]:
    return (call.volumes["rewards"],)


def _overlong_work(call: Call) -> HostWork:
    return HostWork(call.volumes["rewards"].samples, SECONDS_PER_LENGTH, "declared default")


@node(unit=Unit.SAMPLE, volume=_overlong_volume, work=_overlong_work, check=_overlong_check)
def overlong_penalty(rollouts: Rollouts, rewards: Rewards, *, limit: int, buffer: int) -> Rewards:
    """Take from the rewards of responses that come near a length limit (DAPO, Yu et al. 2025).

    Equation 13 there, for a response of `n` tokens: 0 up to `limit - buffer`, `(limit - buffer - n)
    / buffer` up to `limit`, and -1 beyond. A steep step at the limit would punish sound reasoning
    that is merely long, at random.

    Args:
        rollouts: `n` samples.
        rewards: `(n,)`, to which the penalty is added.
        limit: tokens of a response; a rollout's `max_tokens`, or less.
        buffer: how many tokens below the limit the penalty begins.
    """
    packed.same_samples(rollouts, rewards)
    over = rollouts.response_lengths.to(rewards.values.dtype) - (limit - buffer)
    penalty = (over / buffer).clamp(min=0, max=1)
    metric("reward/overlong", penalty)
    return rewards.replace(values=rewards.values - penalty)


def _rewards(rollouts: Rollouts, values: Sequence[float] | Tensor) -> Rewards:
    """In the number format of the log-probabilities."""
    given = values if not isinstance(values, Sequence) else rollouts.logprobs.new_tensor(values)
    metric("reward/mean", given)
    metric("reward/max", given, reduce="max")
    return Rewards(index=rollouts.index, group=rollouts.group, values=given)
