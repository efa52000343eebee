"""The work of one rank of a worker group, whatever process it lives in."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, cast

from rlinf_graph.backends.engines import Engines
from rlinf_graph.dsl.model import Model
from rlinf_graph.dsl.node import definitions
from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.batches import Examples, Rollouts
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import Graph, ModelDef, Node
from rlinf_graph.ir.program import Position, WorkerGroup
from rlinf_graph.ir.value import FunctionRef
from rlinf_graph.nodes.engine import Engine
from rlinf_graph.nodes.execution import Execution, executing
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.train import tokenize_examples, train_batch


class Rank:
    """A rank's registers, and the instructions that work on them.

    Attributes:
        bound: batches by parameter of the node.
        outputs: of the last run.
        weight: of the micro-batches accumulated since the last optimizer step.
    """

    def __init__(
        self,
        graph: Graph,
        group: WorkerGroup,
        number: int,
        engines: Engines,
        registers: MutableMapping[str, Any],
        seed: int,
    ) -> None:
        """Nothing has run."""
        self.node = graph.node(group.name)
        self.bound: dict[str, Batch] = {}
        self.outputs: tuple[Any, ...] = ()
        self.weight = 0.0
        self._graph, self._group, self._number = graph, group, number
        self._engines, self._registers, self._seed = engines, registers, seed

    def run(self, at: Position, metrics: Metrics) -> None:
        """Run the node on the bound parameters."""
        models = {u.param: _handle(self._graph.model(u.model)) for u in self.node.models}
        arguments = {**self.bound, **models, **options_of(self.node)}
        with executing(self._execution(at, metrics)):
            made = definitions[self.node.type].kernel(**arguments)
        self.outputs = made if isinstance(made, tuple) else (made,)

    def accumulate(self, at: Position, metrics: Metrics) -> None:
        """Forward and backward of the bound micro-batch.

        Raises:
            CompileError: RG0305, for a sample that is staler than the pipeline allows.
        """
        self._refuse_stale(at)
        engine = self.trainer
        with executing(self._execution(at, metrics)):
            tokenized = {
                param: tokenize_examples(batch, engine) if isinstance(batch, Examples) else batch
                for param, batch in self.bound.items()
            }
            loss = self.node.option("loss")
            self.weight += engine.accumulate(train_batch(tokenized), loss, metrics)

    def _refuse_stale(self, at: Position) -> None:
        sync = self._graph.syncs().get(self.node.models[0].model)
        samples = self.bound["samples"]
        if sync is None or not isinstance(samples, Rollouts) or not bool(samples.mask.any()):
            return
        oldest = int(samples.versions[samples.mask].min())
        limit = sync.option("max_staleness")
        if at.iteration - oldest > limit:
            raise fail(
                "RG0305",
                f"a sample of version {oldest} came to `{self.node.name}` in iteration "
                f"{at.iteration}: {at.iteration - oldest} iterations old, {limit} allowed",
                self.node.span,
                notes=(f"the bound stands at {sync.span}",),
            )

    def optimizer_step(self, weight: float, metrics: Metrics) -> None:
        """Update with gradients that are already summed over ranks, as `weight` is."""
        self.trainer.optimizer_step(self.node.option("optimizer"), weight, metrics)
        self.weight = 0.0

    def move(self, *, on: bool) -> None:
        """Load or offload the node's engines."""
        for engine in self._engines.of(self._group, self._number).values():
            engine.load() if on else engine.offload()

    @property
    def trainer(self) -> Engine:
        """The engine of a train node."""
        return self._engines.trainer(self._group, self._number)

    def _execution(self, at: Position, metrics: Metrics) -> Execution:
        return Execution(
            node=self.node.name,
            iteration=at.iteration,
            seed=self._seed,
            engines=self._engines.of(self._group, self._number),
            versions=self._engines.versions(self._group, self._number),
            registers=self._registers,
            metrics=metrics,
        )


def options_of(node: Node) -> dict[str, Any]:
    """A node's options as its kernel takes them: functions themselves, not references."""
    return {
        name: value.function if isinstance(value, FunctionRef) else value
        for name, value in node.options
    }


def project(value: Any, field: tuple[str, ...]) -> Any:
    """The field of an output that an edge carries."""
    for name in field:
        value = getattr(value, name)
    return value


def _handle(model: ModelDef) -> Model:
    """What a kernel gets for a model; its engine it finds by the parameter's name."""
    return Model(model.path, name=model.name, head=cast("Any", model.head))
