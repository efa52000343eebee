"""Advantages: how much better than expected a sample, or a token, turned out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import networkx as nx

from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import (
    Advantages,
    Returns,
    Rewards,
    StepRewards,
    StepValues,
    TokenAdvantages,
    TokenRewards,
    Values,
)
from rlinf_graph.ir.diagnostic import Diagnostic, fail
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Unit
from rlinf_graph.ir.work import HostWork, Volume
from rlinf_graph.nodes.execution import metric

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_PER_REWARD = 1e-6
"""Of one core, for a sample's share of a mean and a spread; an assumption."""

SECONDS_PER_TOKEN = 50e-9
"""Of one core, for a token's share of a backward recursion; an assumption."""


def _group_work(call: Call) -> HostWork:
    return HostWork(call.first.samples, SECONDS_PER_REWARD, "declared default")


def _group_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:
    """The rollout that the rewards are for gives more than one answer to a prompt."""
    behind = nx.ancestors(graph.flow, node.name)
    for rollout in (n for n in graph.nodes if n.name in behind and n.type == "rollout"):
        if (rollout.option("keep") or rollout.option("samples")) == 1:
            yield Diagnostic(
                "RG0204",
                f"`{node.name}` compares the samples of a prompt, and there is one of each",
                node.span,
                label="every advantage would be 0",
                notes=(f"`{rollout.name}` has samples=1 ({rollout.span})",),
                help=("rl.rollout(..., samples=8)",),
            )


@node(unit=Unit.GROUP, work=_group_work, check=_group_check)
def group_advantages(
    rewards: Rewards,
    *,
    normalize: Literal["std", "none"] = "std",
    eps: float = 1e-6,
    leave_one_out: bool = False,
) -> Advantages:
    """Compare each sample with the others of its prompt (Shao et al. 2024, DeepSeekMath, §4.1.2).

    `(r - mean) / (std + eps)` within the samples of equal `group`, wherever they stand.

    Args:
        rewards: `(n,)`.
        normalize: `std` divides by the standard deviation of the group's rewards, the unbiased one
            over `size - 1`, as TRL and verl do (the paper does not say which): a factor
            `sqrt(size / (size - 1))` over the population's. Dividing favours prompts whose answers
            differ little; `none` leaves that out (Dr. GRPO, Liu et al. 2025).
        eps: in the divisor.
        leave_one_out: compare with the mean of the other samples, which is independent of this one
            (RLOO, Ahmadian et al. 2024).

    Returns:
        `(n,)`; 0 for a sample that is alone in its group.
    """
    names, owner = rewards.group.unique(return_inverse=True)
    size = owner.bincount(minlength=len(names)).to(rewards.values.dtype)
    centred = rewards.values - (_sums(rewards.values, owner, len(names)) / size)[owner]
    others = (size - 1).clamp(min=1)
    spread = (_sums(centred.square(), owner, len(names)) / others).sqrt()
    metric("reward/uniform_groups", _uniform(rewards.values, owner, len(names)))
    values = centred * (size / others)[owner] if leave_one_out else centred
    if normalize == "std":
        values = values / (spread[owner] + eps)
    return Advantages(index=rewards.index, group=rewards.group, values=values)


def _sums(values: Tensor, owner: Tensor, owners: int) -> Tensor:
    return values.new_zeros(owners).index_add(0, owner, values)


def _uniform(values: Tensor, owner: Tensor, owners: int) -> Tensor:
    """Whether all values of an owner are the same: a group that teaches nothing."""
    empty = values.new_zeros(owners)
    high = empty.scatter_reduce(0, owner, values, "amax", include_self=False)
    return high == empty.scatter_reduce(0, owner, values, "amin", include_self=False)


def _gae_unit(options: Mapping[str, Any]) -> Unit:
    """Whitening looks at the whole batch."""
    return Unit.BATCH if options["whiten"] else Unit.SAMPLE


def _gae_volume(call: Call) -> tuple[Volume, ...]:
    return (call.volumes["values"],) * 2


def _gae_work(call: Call) -> HostWork:
    volume = call.volumes["values"]
    seconds = SECONDS_PER_TOKEN * volume.lengths.mean
    return HostWork(volume.samples, seconds, "declared default")


_UNLIKE = "{} and {} do not go together: StepRewards go with StepValues, of the same episode"


def _gae_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:  # noqa: ARG001  as every check
    """Rewards and values are both of the steps of environments, or neither."""
    rewards, values = node.input("rewards"), node.input("values")
    if rewards is None or values is None:
        return
    if (rewards.type == "StepRewards") is not (values.type == "StepValues"):
        message = f"{_UNLIKE.format(rewards.type, values.type)} (`{node.name}`)"
        notes = tuple(f"the {i.type} come from `{i.source}`" for i in (rewards, values))
        yield Diagnostic("RG0101", message, node.at("values"), notes=notes)


@node(unit=_gae_unit, volume=_gae_volume, work=_gae_work, check=_gae_check)
def gae(
    rewards: Rewards | TokenRewards | StepRewards,
    values: Values | StepValues,
    *,
    discount: float = 1.0,
    trace: float = 0.95,
    whiten: bool = False,
) -> tuple[TokenAdvantages, Returns]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16), over tokens or steps.

    `delta = r + discount V' - V`, `A = delta + discount trace A'`, and returns `A + V`. Of tokens
    only the policy's own count; `V` after the last is 0 for a sample that terminated, and as the
    critic says otherwise. Of the steps of environments all count, and an episode may end at any:
    there `A'` is 0, and `V'` is 0 if it terminated, or that of its last observation if it was
    truncated.

    Args:
        rewards: one number a sample, which counts at its last own token and ends it, or packed
            over the tokens, where those that are not the policy's own do not count, or packed over
            the steps.
        values: packed, one more than the tokens or steps.
        discount: the weight of the next reward (gamma).
        trace: between the one-step error (0) and the whole return (1) (lambda).
        whiten: afterwards, shift and scale the advantages of the batch's own tokens to mean 0 and
            (unbiased) variance 1; makes this node wait for the whole batch. Returns stay as they
            are.

    Returns:
        Advantages and returns, packed over the tokens, 0 where the mask is false, or the steps.
    """
    packed.same_samples(rewards, values)
    if isinstance(rewards, StepRewards) and isinstance(values, StepValues):
        made, expected = _over_steps(rewards, values, discount, discount * trace)
        mask = None
    elif isinstance(rewards, StepRewards) or isinstance(values, StepValues):
        raise fail("RG0101", _UNLIKE.format(type(rewards).__name__, type(values).__name__))
    else:
        made, expected = _over_tokens(rewards, values, discount, discount * trace)
        mask = values.mask
    returns = made + expected
    if whiten and len(made) > 1:
        made = (made - made.mean()) / (made.var() + 1e-8).sqrt()
    named = {"index": values.index, "group": values.group, "lengths": values.lengths}
    return (
        TokenAdvantages(**named, values=_spread_out(made, mask)),
        Returns(**named, values=_spread_out(returns, mask)),
    )


def _over_tokens(
    rewards: Rewards | TokenRewards, values: Values, discount: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Advantages and values of the policy's own tokens, one after another."""
    count, lengths, mask = len(values), values.lengths, values.mask
    sample = lengths.new_ones(count).cumsum(0) - 1
    row = sample.repeat_interleave(lengths)
    own = row[mask].bincount(minlength=count)
    at = (row[mask], (mask.cumsum(0) - 1)[mask] - (own.cumsum(0) - own)[row[mask]])
    width = int(own.max()) if count else 0

    given = values.values
    expected = given.new_zeros(count, width + 1)
    expected[at] = packed.drop_last(values)[mask]
    end = given[(lengths + 1).cumsum(0) - 1]
    expected[sample, own] = end * ~rewards.terminated if isinstance(rewards, TokenRewards) else 0
    reward = given.new_zeros(count, width)
    if isinstance(rewards, TokenRewards):
        reward[at] = rewards.values[mask].to(given.dtype)
    else:
        some = own > 0
        reward[sample[some], own[some] - 1] = rewards.values[some].to(given.dtype)

    error = (reward + discount * expected[:, 1:] - expected[:, :-1])[at]
    return _backwards(error, error.new_full(error.shape, decay), at, count), expected[at]


def _over_steps(
    rewards: StepRewards, values: StepValues, discount: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Advantages and values of all steps, packed."""
    lengths, given = values.lengths, values.values
    row = (lengths.new_ones(len(lengths)).cumsum(0) - 1).repeat_interleave(lengths)
    place = lengths.new_ones(len(row)).cumsum(0) - 1
    at = (row, place - (lengths.cumsum(0) - lengths)[row])
    now, after = given[place + row], given[place + row + 1]
    after = values.finals.where(rewards.truncated, after).masked_fill(rewards.terminated, 0)
    error = rewards.values.to(given.dtype) + discount * after - now
    going = (~(rewards.terminated | rewards.truncated)).to(given.dtype)
    return _backwards(error, decay * going, at, len(lengths)), now


def _backwards(error: Tensor, decay: Tensor, at: tuple[Tensor, Tensor], samples: int) -> Tensor:
    """The recursion `A = error + decay A'`, for all samples at once.

    Args:
        error, decay: `(k,)`.
        at: int64 `(k,)`, the sample of each and its place there.
        samples: how many there are.
    """
    row, place = at
    width = int(place.max()) + 1 if len(place) else 0
    made, decays = error.new_zeros(width, samples), decay.new_zeros(width, samples)
    made[place, row], decays[place, row] = error, decay
    steps, kept = made.unbind(), decays.unbind()
    for t in reversed(range(width - 1)):
        steps[t].add_(kept[t] * steps[t + 1])
    return made[place, row]


def _spread_out(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values of the policy's own tokens, at their places among all tokens."""
    if mask is None:
        return values
    made = values.new_zeros(len(mask))
    made[mask] = values
    return made
