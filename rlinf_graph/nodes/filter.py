"""Nodes that give fewer samples than they take, and keep count of how many are wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir import packed
from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.batches import Demand, Rewards, Rollouts
from rlinf_graph.ir.diagnostic import Diagnostic
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Unit
from rlinf_graph.ir.packed import Rows
from rlinf_graph.ir.work import HostWork, Lengths, Volume
from rlinf_graph.nodes.execution import metric

SomeBatch = TypeVar("SomeBatch", bound=Batch)

SECONDS_PER_SAMPLE = 2e-6
"""Of one core, to look at a sample's reward and to copy the sample; an assumption."""

ONE = Volume(1, Lengths.fixed(1, "declared"))


def _work(call: Call) -> HostWork:
    return HostWork(call.volumes["rollouts"].samples, SECONDS_PER_SAMPLE, "declared default")


@node(unit=Unit.GROUP, work=_work)
def keep_mixed(rollouts: Rollouts, rewards: Rewards) -> tuple[Rollouts, Rewards]:
    """Drop groups whose rewards are all alike: they teach nothing.

    The filter of dynamic sampling (DAPO, Yu et al. 2025, section 3.2). Emits `filter/accepted`, the
    share of groups that are kept.

    Args:
        rollouts: `n` samples.
        rewards: `(n,)`, of the same samples.

    Returns:
        Those samples of both whose group has two different rewards, in the order in which they came
        and under the index that they had.
    """
    packed.same_samples(rollouts, rewards)
    names, owner = np.unique(packed.host(rewards.group), return_inverse=True)
    values = packed.host(rewards.values.double())
    high, low = np.full(len(names), -np.inf), np.full(len(names), np.inf)
    np.maximum.at(high, owner, values)
    np.minimum.at(low, owner, values)
    mixed = high > low
    if len(names):
        metric("filter/accepted", float(mixed.mean()), weight=float(len(names)))
    rows = mixed[owner].nonzero()[0]
    return packed.select(rollouts, rows), packed.select(rewards, rows)


def _demand_volume(_call: Call) -> tuple[Volume, ...]:
    return (ONE,)


def _demand_work(_call: Call) -> HostWork:
    return HostWork(1, SECONDS_PER_SAMPLE, "declared default")


def _demand_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:  # noqa: ARG001  as every check
    if node.option("groups") < 1:
        message = f"`groups` of `{node.name}` is {node.option('groups')}; it has to be at least 1"
        yield Diagnostic("RG0104", message, node.at("groups"))


@node(volume=_demand_volume, work=_demand_work, check=_demand_check)
def demand(groups: int) -> Demand:
    """Want that many groups in every iteration; none has been found yet."""
    import torch  # it makes tensors out of nothing

    zero = torch.zeros(1, dtype=torch.int64)
    return Demand(index=zero, group=zero, groups=zero + groups, found=zero)


def _settle_volume(call: Call) -> tuple[Volume, ...]:
    given, samples = call.volumes["rollouts"], call.options["samples"]
    whole = call.options["groups"] * samples
    kept = Volume(whole, given.lengths, given.prompt_tokens, samples)
    return ONE, kept, kept


@node(volume=_settle_volume, work=_work)
def settle(
    wanted: Demand,
    rollouts: Rollouts,
    rewards: Rewards,
    *,
    groups: int,  # noqa: ARG001  read when planning
    samples: int,
    batch: int | None = None,
    tries: float = 1.0,
    acceptance: float | None = None,  # noqa: ARG001  read when planning
) -> tuple[Demand, Rollouts, Rewards]:
    """Take of what a round found as many groups as are wanted, and want so many less.

    Emits `refill/rounds`, in which something was wanted; `refill/acceptance`, groups found over
    groups tried; `refill/short`, groups that are still wanted in the end.

    Args:
        wanted: how many groups are, and how many rounds before this one have found.
        rollouts, rewards: of the same samples, of whole groups or parts of them.
        groups: that are wanted in an iteration; read when planning.
        samples: of a group, at most.
        batch: groups that a round tries, at most; without it no less than are wanted.
        tries: groups that a round tries for each that is wanted.
        acceptance: the share of groups that is found, as declared; read when planning.

    Returns:
        What is wanted still, and the first groups by sample index. The g-th that is found in an
        iteration gets group g, its samples index `g * samples` and up: whichever rank drew them.

    Raises:
        ValueError: for a group of more than `samples`.
    """
    packed.same_samples(rollouts, rewards)
    missing, found = int(wanted.groups.sum()), int(wanted.found.sum())
    rows, rank, place, count = _in_order(rollouts)
    if len(place) and int(place.max()) >= samples:
        raise ValueError(f"a group of {int(place.max()) + 1} samples, {samples} at most expected")
    if missing:
        tried = math.ceil(missing * tries)
        tried = tried if batch is None else min(batch, tried)
        metric("refill/rounds", 1.0, reduce="sum")
        metric("refill/acceptance", count / tried, weight=float(tried))
    taken = min(count, missing)
    metric("refill/short", float(missing - taken), reduce="min")
    first = rank < taken
    number, within = found + rank[first], place[first]
    left = wanted.replace(groups=wanted.groups - taken, found=wanted.found + taken)
    return (
        left,
        _numbered(packed.select(rollouts, rows[first]), number, number * samples + within),
        _numbered(packed.select(rewards, rows[first]), number, number * samples + within),
    )


def _in_order(rollouts: Rollouts) -> tuple[Rows, Rows, Rows, int]:
    """Samples group after group, groups by their first sample.

    Returns:
        Their rows; of each its group's place among the groups, and its own within the group; and
        how many groups there are.
    """
    by_index = np.argsort(packed.host(rollouts.index), kind="stable")
    group = packed.host(rollouts.group)[by_index]
    names, first, owner = np.unique(group, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[owner]
    order = np.argsort(rank, kind="stable")
    ranks = rank[order]
    sizes = np.bincount(ranks, minlength=len(names))
    place = np.arange(len(ranks)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return by_index[order], ranks, place, len(names)


def _numbered(batch: SomeBatch, group: Rows, index: Rows) -> SomeBatch:
    new = batch.index.new_tensor
    return batch.replace(group=new(group), index=new(index))
