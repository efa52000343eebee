"""What a run keeps of every iteration: metrics, and the samples with their rewards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.batches import Rewards, Rollouts
from rlinf_graph.nodes.metric import Metrics

Sample = dict[str, Any]


@dataclass(frozen=True)
class IterationRecord:
    """One finished iteration.

    Attributes:
        iteration: its number.
        metrics: name → reduced value.
        samples: one record a rollout, in dispatch order: prompt, response, reward, versions.
    """

    iteration: int
    metrics: dict[str, float]
    samples: list[Sample]


@dataclass
class Sightings:
    """Samples and rewards of an iteration, as one process saw them."""

    samples: dict[tuple[str, int], Sample] = field(default_factory=dict[tuple[str, int], Sample])
    rewards: dict[int, float] = field(default_factory=dict[int, float])

    def saw(self, node: str, iteration: int, batch: Batch) -> None:
        """Note a batch that a node handed to an edge; seeing it again changes nothing."""
        if isinstance(batch, Rollouts) and len(batch.tokens):  # dialogs begin without any
            for sample in _samples_of(node, iteration, batch):
                self.samples.setdefault((node, sample["index"]), sample)
        elif isinstance(batch, Rewards):
            values = dict(zip(batch.index.tolist(), batch.values.tolist(), strict=True))
            self.rewards.update(values)


@dataclass
class Recorder:
    """Collects what the ranks emit and hands it on when all of them are done."""

    processes: int
    report: Callable[[IterationRecord], None]
    metrics: dict[int, Metrics] = field(default_factory=lambda: defaultdict[int, Metrics](Metrics))
    _seen: dict[int, Sightings] = field(
        default_factory=lambda: defaultdict[int, Sightings](Sightings)
    )
    _finished: dict[int, int] = field(default_factory=lambda: defaultdict[int, int](int))

    def saw(self, node: str, iteration: int, batch: Batch) -> None:
        """Note a batch that a node handed to an edge."""
        self._seen[iteration].saw(node, iteration, batch)

    def add(self, iteration: int, seen: Sightings) -> None:
        """Take in what another process saw."""
        self._seen[iteration].samples.update(seen.samples)
        self._seen[iteration].rewards.update(seen.rewards)

    def finish(self, iteration: int) -> None:
        """A process is done with an iteration; the last one makes it be reported."""
        self._finished[iteration] += 1
        if self._finished[iteration] < self.processes:
            return
        seen = self._seen.pop(iteration, Sightings())
        for (_node, index), sample in seen.samples.items():
            sample["reward"] = seen.rewards.get(index)
        ordered = [seen.samples[key] for key in sorted(seen.samples)]
        metrics = self.metrics.pop(iteration, Metrics()).values()
        self.report(IterationRecord(iteration, metrics, ordered))


def _samples_of(node: str, iteration: int, batch: Rollouts) -> list[Sample]:
    own = batch.versions.clamp(min=0)
    ends = batch.lengths.cumsum(0).tolist()
    return [
        {
            "iteration": iteration,
            "node": node,
            "index": int(index),
            "group": int(group),
            "version": int(own[end - 1]),
            "prompt": prompt,
            "response": response,
            "truth": columns.get("truth"),
            "finished": bool(finished),
        }
        for index, group, end, prompt, response, columns, finished in zip(
            batch.index.tolist(), batch.group.tolist(), ends, batch.prompts, batch.responses,
            batch.columns, batch.finished.tolist(), strict=True,
        )
    ]  # fmt: skip
