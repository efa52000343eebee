"""What a run keeps of every iteration: metrics, and the samples with their rewards."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.batches import Prompt, Rewards, Rollouts
from rlinf_graph.ir.packed import host
from rlinf_graph.nodes.metric import Metrics

Sample = dict[str, Any]


class Seen(NamedTuple):
    """What is kept of the rollouts in a batch, by column; of versions the oldest and the newest."""

    node: str
    index: list[int]
    group: list[int]
    oldest: list[int]
    newest: list[int]
    prompts: list[Prompt]
    responses: list[str]
    truths: list[Any]
    finished: list[bool]


@dataclass
class Sightings:
    """Samples and rewards of an iteration, as one process saw them."""

    rollouts: list[Seen] = field(default_factory=list[Seen])
    rewards: list[tuple[list[int], list[float]]] = field(default_factory=list[Any])
    _sealed: list[bytes] = field(default_factory=list[bytes])
    _noted: list[tuple[Any, ...]] = field(default_factory=list[Any])

    def saw(self, node: str, batch: Batch) -> None:
        """Note a batch that a node handed to an edge; seeing it again changes nothing.

        Others wait for the batch: it is only read when the iteration is settled.
        """
        if isinstance(batch, Rollouts) and batch.tokens.shape[0]:  # dialogs begin without any
            self._noted.append((
                node, batch.lengths, batch.versions, batch.index, batch.group, batch.prompts,
                batch.responses, batch.columns, batch.finished,
            ))  # fmt: skip
        elif isinstance(batch, Rewards):
            self.rewards.append((batch.index.tolist(), batch.values.tolist()))

    def settled(self) -> Sightings:
        """The same, of which nothing is a tensor."""
        rollouts = [*self.rollouts, *(_seen(*note) for note in self._noted)]
        return Sightings(rollouts, self.rewards, self._sealed)

    def sealed(self) -> Sightings:
        """The same, settled, as bytes: those who pass it on need not read it."""
        settled = self.settled()
        if not (settled.rollouts or settled.rewards):
            return settled
        told = pickle.dumps((settled.rollouts, settled.rewards), protocol=5)
        return Sightings(_sealed=[*settled._sealed, told])

    def add(self, other: Sightings) -> None:
        """Take in what another process saw."""
        self.rollouts += other.rollouts
        self.rewards += other.rewards
        self._sealed += other._sealed

    def samples(self, iteration: int) -> list[Sample]:
        """One record a rollout, by node and index."""
        opened = [(self.rollouts, self.rewards), *map(pickle.loads, self._sealed)]
        rewards = {
            index: value
            for _rollouts, told in opened
            for many in told
            for index, value in zip(*many, strict=True)
        }
        made: dict[tuple[str, int], Sample] = {}
        for seen in (seen for rollouts, _told in opened for seen in rollouts):
            for sample in _samples_of(seen, iteration):
                made.setdefault((seen.node, sample["index"]), sample)
                sample["reward"] = rewards.get(sample["index"])
        return [made[key] for key in sorted(made)]


@dataclass(frozen=True)
class IterationRecord:
    """One finished iteration.

    Attributes:
        iteration: its number.
        metrics: name → reduced value.
        seen: its rollouts and rewards.
        age: seconds since it was finished, when this record was handed over.
    """

    iteration: int
    metrics: dict[str, float]
    seen: Sightings
    age: float = 0.0

    @cached_property
    def samples(self) -> list[Sample]:
        """One record a rollout, in dispatch order: prompt, response, reward, versions."""
        return self.seen.samples(self.iteration)


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
    _last: Batch | None = None

    def saw(self, node: str, iteration: int, batch: Batch) -> None:
        """Note a batch that a node handed to an edge; often it hands it to several."""
        if batch is not self._last:
            self._last = batch
            self._seen[iteration].saw(node, batch)

    def add(self, iteration: int, seen: Sightings) -> None:
        """Take in what another process saw."""
        self._seen[iteration].add(seen)

    def finish(self, iteration: int) -> None:
        """A process is done with an iteration; the last one makes it be reported."""
        self._finished[iteration] += 1
        if self._finished[iteration] < self.processes:
            return
        self._last = None
        metrics = self.metrics.pop(iteration, Metrics()).values()
        seen = self._seen.pop(iteration, Sightings()).settled()
        self.report(IterationRecord(iteration, metrics, seen))


def _seen(
    node: str, lengths: Any, versions: Any, index: Any, group: Any, prompts: list[Prompt],
    responses: list[str], columns: list[Any], finished: Any,
) -> Seen:  # fmt: skip
    own = host(versions)
    starts = np.minimum(host(lengths).cumsum() - host(lengths), len(own) - 1)
    newest = np.maximum(0, np.maximum.reduceat(own, starts))
    chosen = np.where(own < 0, newest.max(initial=0), own)
    oldest = np.minimum(np.minimum.reduceat(chosen, starts), newest)
    truths = [given.get("truth") for given in columns]
    return Seen(
        node, index.tolist(), group.tolist(), oldest.tolist(), newest.tolist(), prompts, responses,
        truths, finished.tolist(),
    )  # fmt: skip


def _samples_of(seen: Seen, iteration: int) -> Iterator[Sample]:
    for index, group, oldest, newest, prompt, response, truth, finished in zip(
        *seen[1:], strict=True
    ):
        yield {
            "iteration": iteration,
            "node": seen.node,
            "index": index,
            "group": group,
            "version": oldest,
            "newest": newest,
            "prompt": prompt,
            "response": response,
            "truth": truth,
            "finished": finished,
        }
