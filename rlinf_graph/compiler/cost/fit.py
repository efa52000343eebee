"""From measurements to corrections: least squares of the relative error, no term negative."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rlinf_graph.compiler.cost.constants import HANDOVER_SECONDS
from rlinf_graph.compiler.cost.model import CostModel
from rlinf_graph.compiler.cost.profile import HANDOVER, Correction, Subject
from rlinf_graph.ir.graph import Node
from rlinf_graph.ir.measurement import Kind, Measurement
from rlinf_graph.ir.operations import Operations
from rlinf_graph.ir.plan import NodePlan
from rlinf_graph.ir.work import Forward, Generate, HostWork, Lengths, Train

Array = NDArray[np.float64]
DEVICE = (0,)
QUARTILES = 1.349
"""Standard deviations between the quartiles of a normal distribution."""

SAME_SIZE = 0.01
"""Estimates that differ by less are of one size: they cannot tell overhead from factor."""


@dataclass(frozen=True)
class Fitted:
    """A correction with the pairs that it was fitted to.

    Attributes:
        correction: the result.
        pairs: measurement and the cost model's estimate of it, seconds, small ones first.
    """

    correction: Correction
    pairs: tuple[tuple[Measurement, float], ...]


def fit_all(costs: CostModel, measurements: Iterable[Measurement]) -> list[Fitted]:
    """The correction of each subject and kind, in the order of their first measurement.

    Args:
        costs: without a profile, of the cluster that was measured; its device 0 stands for those
            that were.
        measurements: of nodes of the cost model's graph.
    """
    found: dict[tuple[Subject, Kind], list[Measurement]] = defaultdict(list)
    for made in measurements:
        subject = costs.corrections.subject(costs.graph.node(made.node), DEVICE, NodePlan())
        key = Subject(HANDOVER) if made.kind == "handover" else subject, made.kind
        found[key].append(made)
    return [_fitted(costs, *key, same) for key, same in found.items()]


def fit_line(estimates: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Overhead and factor, neither negative, that leave the least squared relative error.

    Estimates of one size are scaled only; estimates of zero are overhead only.
    """
    x, y = np.asarray(estimates, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    y = np.maximum(y, 1e-9)
    candidates = [(_least(1 / y), 0.0)]
    if x.max() > 0:
        candidates.append((0.0, _least(x / y)))
        if len(x) > 1 and x.max() - x.min() > SAME_SIZE * x.max():
            overhead, factor = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones_like(y))[0]
            if overhead >= 0 and factor >= 0:
                return float(overhead), float(factor)
        else:
            return candidates[-1]
    return min(candidates, key=lambda line: residual(line, x, y))


def residual(line: tuple[float, float], x: Array, y: Array) -> float:
    """Root mean square of the relative errors of a line."""
    return float(np.sqrt(np.mean(((line[0] + line[1] * x) / y - 1) ** 2)))


def spread(measurements: Sequence[Measurement]) -> float:
    """Standard deviation of the logarithm of seconds, each against the median of its size.

    From the quartiles, which a repetition that something else disturbed does not move.
    """
    apart = [np.log(np.asarray(m.seconds) / m.median) for m in measurements if m.median > 0]
    if not apart:
        return 0.0
    low, high = np.quantile(np.concatenate(apart), (0.25, 0.75))
    return float(high - low) / QUARTILES


def estimate_of(costs: CostModel, made: Measurement) -> float:
    """What the cost model says of the very work that was measured, in seconds."""
    node = costs.graph.node(made.node)
    if made.kind == "sync":
        return costs.sync(node.model or "", DEVICE, DEVICE, "copy").seconds
    if made.kind == "handover":
        return made.samples * HANDOVER_SECONDS
    if made.kind == "host":
        return costs.host(_measured(node, made), 1, costs.cluster.groups[0]).seconds
    settings = NodePlan(micro_batch=made.samples if made.kind == "accumulate" else None)
    node = _measured(node, made)
    if made.kind == "accumulate":
        return costs.accumulate_seconds(node, DEVICE, settings, made.samples)
    if made.kind == "optimizer_step":
        return costs.optimizer_step_seconds(node, DEVICE, settings)
    return costs.chunk_seconds(node, DEVICE, settings)


def _measured(node: Node, made: Measurement) -> Node:
    """The node with the work that was measured instead of the work that is expected."""
    lengths = Lengths(made.lengths or (0.0,), "measured")
    match node.work:
        case Generate():
            work = Generate(made.samples, made.prompt_tokens, lengths, made.group)
        case Forward():
            work = replace(node.work, samples=made.samples, lengths=lengths)
        case Train():
            work = Train(made.samples, lengths, 1, 1, node.work.head)
        case HostWork() | Operations():
            work = replace(node.work, samples=made.samples)
        case None:
            volumes = tuple(replace(v, samples=made.samples) for v in node.volume)
            return replace(node, volume=volumes)
    return replace(node, work=work)


def _fitted(costs: CostModel, subject: Subject, kind: Kind, same: list[Measurement]) -> Fitted:
    pairs = sorted(((m, estimate_of(costs, m)) for m in same), key=lambda pair: pair[1])
    x, y = [estimate for _, estimate in pairs], [m.median for m, _ in pairs]
    line = fit_line(x, y)
    correction = Correction(
        subject=subject,
        kind=kind,
        overhead_s=line[0],
        factor=line[1],
        residual=residual(line, np.asarray(x), np.asarray(y)),
        spread=spread([m for m, _ in pairs]),
        measurements=len(pairs),
    )
    return Fitted(correction, tuple(pairs))


def _least(share: Array) -> float:
    """The scale that brings `share` closest to 1."""
    return float(share.sum() / np.square(share).sum())
