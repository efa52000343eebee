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
    TokenAdvantages,
    TokenRewards,
    Values,
)
from rlinf_graph.ir.diagnostic import Diagnostic
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
        if rollout.option("samples") == 1:
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


@node(unit=_gae_unit, volume=_gae_volume, work=_gae_work)
def gae(
    rewards: Rewards | TokenRewards,
    values: Values,
    *,
    discount: float = 1.0,
    trace: float = 0.95,
    whiten: bool = False,
) -> tuple[TokenAdvantages, Returns]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16) over the policy's own tokens.

    With `V` after the last token 0 for a sample that terminated, and as the critic says otherwise:
    `delta = r + discount V' - V`, `A = delta + discount trace A'`, and returns `A + V`.

    Args:
        rewards: one number a sample, which counts at its last own token and ends it, or packed
            over the tokens; those on tokens that are not the policy's own do not count.
        values: packed, one more than the tokens.
        discount: the weight of the next reward (gamma).
        trace: between the one-step error (0) and the whole return (1) (lambda).
        whiten: afterwards, shift and scale the advantages of the batch's own tokens to mean 0 and
            (unbiased) variance 1; makes this node wait for the whole batch. Returns stay as they
            are.

    Returns:
        Advantages and returns, packed over the tokens, 0 where the mask is false.
    """
    packed.same_samples(rewards, values)
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

    advantages = _backwards(reward, expected, own, discount, discount * trace)[at]
    returns = advantages + expected[at]
    if whiten and len(advantages) > 1:
        spread = (advantages.var() + 1e-8).sqrt()
        advantages = (advantages - advantages.mean()) / spread
    named = {"index": values.index, "group": values.group, "lengths": lengths}
    return (
        TokenAdvantages(**named, values=_spread_out(advantages, mask, given)),
        Returns(**named, values=_spread_out(returns, mask, given)),
    )


def _backwards(
    reward: Tensor, expected: Tensor, own: Tensor, discount: float, decay: float
) -> Tensor:
    """The recursion, for all samples at once: `(n, width)`."""
    made = reward.new_zeros(reward.shape)
    later = reward.new_zeros(len(reward))
    for t in reversed(range(reward.shape[1])):
        error = reward[:, t] + discount * expected[:, t + 1] - expected[:, t]
        later = (error + decay * later) * (t < own)
        made[:, t] = later
    return made


def _spread_out(values: Tensor, mask: Tensor, like: Tensor) -> Tensor:
    """Values of the policy's own tokens, at their places among all tokens."""
    made = like.new_zeros(len(mask))
    made[mask] = values
    return made
