"""The worker around an engine: one process of those that hold a model together."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rlinf_graph.backends.memory import MemoryMeter
from rlinf_graph.backends.ray.state import Buckets
from rlinf_graph.backends.ray.weights import Arriving, Transport, put_buckets
from rlinf_graph.backends.ray.workers.worker import Worker
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.ir.plan import NodePlan
from rlinf_graph.nodes.engine import Engine, Key, Sampling, TrainBatch
from rlinf_graph.nodes.loss import Loss
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW
from rlinf_graph.nodes.registry import Member, capabilities_of, engine_class


@dataclass(frozen=True)
class Making:
    """What a process needs to know to make its engine; `EngineClass` says more.

    Attributes:
        engine: its name.
        model: to load.
        seed: of the run.
        trainable: whether it learns.
        settings: of the node; dp is 1 where replicas are not joined.
    """

    engine: str
    model: ModelDef
    seed: int
    trainable: bool
    settings: NodePlan

    @property
    def replica(self) -> int:
        """Processes of a replica."""
        parallel = self.settings.parallel
        return parallel.devices // parallel.dp


class HostedEngine(Worker):
    """Calls on an engine, one at a time; only `abort` comes in between."""

    def __init__(self, making: Making) -> None:
        """Nothing is loaded yet."""
        self._making = making
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._parts: Iterator[Rollouts] | None = None
        self._first = self.rank % making.replica == 0
        self._meter: MemoryMeter | None = None

    def open(self) -> None:
        """Load the engine.

        Raises:
            CompileError: RG0503, for a model that cannot be loaded.
        """
        making, kind = self._making, "gpu" if self.device.type == "cuda" else "cpu"
        self._meter = MemoryMeter(kind)
        hosted = capabilities_of(making.engine).hosted
        model = replace(making.model, dtype=_dtype(making.model, kind)) if hosted else making.model
        with tempfile.TemporaryDirectory(prefix="rlinf-graph-") as folder:
            if hosted and model.weights == "random":
                model = _made(model, making.seed, Path(folder))
            self._engine = engine_class(making.engine)(
                model,
                seed=making.seed,
                device="cuda:0" if kind == "gpu" else "cpu",
                dtype=model.dtype,
                trainable=making.trainable,
                member=Member(self.rank, making.settings),
            )

    def perform(self, method: str, *args: Any, **named: Any) -> Any:
        """A method of the engine; its result from the replica's first process, else None."""
        with self._lock:
            result = getattr(self._held, method)(*args, **named)
        return result if self._first else None

    def each(self, method: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> Any:
        """A method with arguments, and a result, for each process of a replica."""
        given = () if arguments is None else arguments[self.rank % self._making.replica]
        with self._lock:
            return getattr(self._held, method)(*given)

    def accumulate(
        self, batches: Sequence[dict[str, Any]], loss: Loss
    ) -> tuple[float, Metrics] | None:
        """Weight and metrics of `TrainBatch`es, which come as dictionaries of their fields."""
        metrics, made = Metrics(), [TrainBatch(**fields) for fields in batches]
        with self._lock:
            weight = self._held.accumulate(made, loss, metrics)
        return (weight, metrics) if self._first else None

    def optimizer_step(self, optimizer: AdamW, weight: float) -> Metrics | None:
        """The metrics."""
        metrics = Metrics()
        with self._lock:
            self._held.optimizer_step(optimizer, weight, metrics)
        return metrics if self._first else None

    def set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Replace the gradients held."""
        with self._lock:
            for name, held in self._held.gradients().items():
                held.copy_(gradients[name])

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take weights over that are given."""
        with self._lock:
            self._held.update_weights(weights, version)

    def fetch(self, model: str, members: Sequence[Buckets], version: int) -> None:
        """Take weights over that lie in the object store; fetched bucket by bucket."""
        self.update(Arriving(model, members), version)

    def publish(self, transport: Transport) -> Buckets:
        """Where this process's parts of the weights lie from now on."""
        with self._lock:
            return put_buckets(self._held.shards(), transport)

    def begin(self, prompts: Prompts, sampling: Sampling, key: Key, version: int) -> None:
        """Begin to stream; what is left of the stream before is given up."""
        with self._lock:
            self._parts = self._held.stream(prompts, sampling, key, version)

    def next_part(self) -> Rollouts | None:
        """The next part of the stream; None after the last one."""
        with self._lock:
            part = next(self._parts or iter(()), None)
        return part if self._first else None

    def abort(self) -> None:
        """End what another call samples."""
        self._held.abort()

    def memory(self) -> float | None:
        """Most bytes that this process needed."""
        return self._meter.peak() if self._meter else None

    @property
    def _held(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the engine has not been loaded")
        return self._engine


def _dtype(model: ModelDef, kind: str) -> str:
    """What `auto` is on a kind of device."""
    if model.dtype != "auto":
        return model.dtype
    return "bfloat16" if kind == "gpu" else "float32"


def _made(model: ModelDef, seed: int, folder: Path) -> ModelDef:
    """A folder with the random weights that the torch engine gives a model."""
    made = engine_class("torch")(model, seed=seed, device="cpu", dtype=model.dtype, trainable=False)
    made.save(folder)
    return replace(model, path=str(folder), weights="pretrained")
