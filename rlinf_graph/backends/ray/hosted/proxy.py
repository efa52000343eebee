"""An engine whose work other processes do, as a rank's process sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rlinf_graph.backends.ray.state import Buckets
from rlinf_graph.backends.ray.weights import Arriving, Transport
from rlinf_graph.backends.ray.workers.errors import WorkerError
from rlinf_graph.backends.ray.workers.group import WorkerGroup
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.engine import Key, Sampling, Shard, TrainBatch
from rlinf_graph.nodes.loss import Loss
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW

PLAIN = frozenset(
    {
        "generate", "resume", "reply", "sleep", "wake", "logprobs", "values", "gradients",
        "tokenize", "tokenize_completion", "load", "offload", "act", "step_values", "scores",
    }
)  # fmt: skip
"""Methods of an engine that are carried out elsewhere as they are called."""


class Proxy:
    """One replica of a model: an `Engine`, by calls on the processes that hold it.

    Args:
        group: of `HostedEngine`s.
        ranks: those of the replica.
        model: its name, for messages.
    """

    def __init__(self, group: WorkerGroup, ranks: Sequence[int], model: str) -> None:
        self._group, self._ranks, self._model = group, tuple(ranks), model
        self.version = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in PLAIN:
            raise AttributeError(name)

        def call(*args: Any, **named: Any) -> Any:
            return self._ask("perform", name, *args, **named)[0]

        return call

    def stream(
        self, prompts: Prompts, sampling: Sampling, key: Key, version: int
    ) -> Iterator[Rollouts]:
        """Responses as they finish."""
        self._ask("begin", prompts, sampling, key, version)
        while (part := self._ask("next_part")[0]) is not None:
            yield part

    def abort(self) -> None:
        """End what another thread samples."""
        self._ask("abort")

    def accumulate(self, batches: Sequence[TrainBatch], loss: Loss, metrics: Metrics) -> float:
        """Forward and backward; the loss's weight."""
        told = [dict(vars(batch)) for batch in batches]
        weight, emitted = self._ask("accumulate", told, loss)[0]
        metrics.merge(emitted)
        return weight

    def optimizer_step(self, optimizer: AdamW, weight: float, metrics: Metrics) -> None:
        """Update the weights."""
        metrics.merge(self._ask("optimizer_step", optimizer, weight)[0])

    def set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Replace the gradients held: those that `gradients` gives are copies."""
        self._ask("set_gradients", dict(gradients))

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int = 0) -> None:
        """Take weights over; what lies in the object store is fetched where it is needed."""
        if isinstance(weights, Arriving):
            self._ask("fetch", self._model, list(weights.members), version)
        else:
            self._ask("update", list(weights), version)
        self.version = version

    def publish(self, transport: Transport) -> list[Buckets]:
        """Put the weights into the object store: the buckets of each process."""
        return self._ask("publish", transport)

    def shards(self) -> Iterator[Shard]:
        """All weights, each whole, by way of the object store."""
        for name, values in Arriving(self._model, self.publish(Transport())):
            yield Shard(name, tuple(values.shape), (0,) * values.ndim, values)

    def state(self) -> dict[str, Any]:
        """What each process needs to go on: `members`, in their order."""
        return {"members": self._ask("each", "state")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self._ask("each", "load_state", [(each,) for each in state["members"]])

    def save(self, path: Path) -> None:
        """Write a folder that transformers loads, on the machine of the first process."""
        self._ask("perform", "save", path)

    def memory(self) -> list[float | None]:
        """Most bytes that each process needed."""
        return self._ask("memory")

    def _ask(self, method: str, *args: Any, **named: Any) -> list[Any]:
        """Call a method of all processes; what they give, in their order.

        Raises:
            CompileError: that an engine raised.
            WorkerError: the cause of another failure.
        """
        try:
            return getattr(self._group.on(self._ranks), method)(*args, **named).wait()
        except WorkerError as error:
            if isinstance(error.__cause__, CompileError):
                raise error.__cause__ from None
            raise

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
