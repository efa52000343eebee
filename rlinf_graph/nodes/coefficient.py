"""Numbers of a pipeline that change between iterations: the coefficient of a KL penalty."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import ReferenceLogprobs, Rollouts, Scalars
from rlinf_graph.ir.diagnostic import Diagnostic, fail
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.work import HostWork, Lengths, Volume
from rlinf_graph.nodes.execution import metric

SECONDS_PER_TOKEN = 10e-9
"""Of one core, for a difference of log-probabilities; an assumption."""

SECONDS_PER_NUMBER = 1e-6
"""Of one core, to make a number; an assumption."""

LARGEST_ERROR = 0.2
"""Of the proportional controller: how far off the target counts at most."""


def constant(*values: float) -> Scalars:
    """Numbers to begin with, such as `rl.state(rl.constant(0.05))`.

    Args:
        values: one or more.
    """
    return scalars(values=values)


def _scalars_volume(call: Call) -> tuple[Volume, ...]:
    return (Volume(len(call.options["values"]), Lengths.fixed(1, "declared")),)


def _scalars_work(call: Call) -> HostWork:
    return HostWork(len(call.options["values"]), SECONDS_PER_NUMBER, "declared default")


def _scalars_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:  # noqa: ARG001  as every check
    """There is a number, and all are finite."""
    values = node.option("values")
    if not values or not all(-inf < value < inf for value in values):
        shown = ", ".join(map(str, values)) or "nothing"
        message = f"rl.constant of {shown}; it takes one or more finite numbers"
        yield Diagnostic("RG0104", message, node.span, help=("rl.constant(0.05)",))


@node(label="constant", volume=_scalars_volume, work=_scalars_work, check=_scalars_check)
def scalars(*, values: tuple[float, ...]) -> Scalars:
    """Numbers that are known when planning, in float64."""
    import torch

    index = torch.arange(len(values))
    return Scalars(index=index, group=index, values=torch.tensor(values, dtype=torch.float64))


def one_number(name: str, given: Scalars) -> float:
    """The number of a batch that holds only one.

    Raises:
        CompileError: RG0104, for a batch that holds more, or none.
    """
    if len(given) != 1:
        message = f"`coefficient` of `{name}` is one number, and {len(given)} came"
        raise fail("RG0104", message, help=("rl.state(rl.constant(0.05))",))
    return float(given.values)


def _adapt_work(call: Call) -> HostWork:
    volume = call.volumes["rollouts"]
    return HostWork(volume.samples, SECONDS_PER_TOKEN * volume.lengths.mean, "declared default")


def _adapt_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:  # noqa: ARG001  as every check
    """Target and horizon are over 0, and the coefficient is one number."""
    for name in ("target", "horizon"):
        if not 0 < node.option(name) < inf:
            message = f"`{name}` of `{node.name}` is {node.option(name)}; it is a number over 0"
            yield Diagnostic("RG0104", message, node.at(name))


@node(work=_adapt_work, check=_adapt_check)
def adapt_kl(
    coefficient: Scalars,
    rollouts: Rollouts,
    reference: ReferenceLogprobs,
    *,
    target: float,
    horizon: float,
) -> Scalars:
    """The next iteration's coefficient of a KL penalty, which holds the divergence at a target.

    The proportional controller of Ziegler et al. 2019, section 2.2: `error = clip(KL / target - 1,
    -0.2, 0.2)`, and the coefficient is multiplied by `1 + error samples / horizon`. KL is measured
    per sequence: the sum of behaviour minus reference log-probability over the policy's own tokens,
    and its mean over the samples.

    Args:
        coefficient: this iteration's, one number.
        rollouts: `n` samples.
        reference: log-probabilities of the reference, packed.
        target: nats a sequence.
        horizon: samples in which an error of one whole target, were it not clipped, would double
            the coefficient.

    Returns:
        One number; without samples the same as before.
    """
    packed.same_samples(rollouts, reference)
    now = one_number("adapt_kl", coefficient)
    metric("kl/coefficient", now)
    count = len(rollouts)
    if not count:
        return coefficient
    divergence = (rollouts.logprobs - reference.values)[rollouts.mask].double()
    found = float(divergence.sum()) / count
    metric("kl/per_sample", found, weight=count)
    error = max(-LARGEST_ERROR, min(LARGEST_ERROR, found / target - 1))
    return coefficient.replace(values=coefficient.values * (1 + error * count / horizon))
