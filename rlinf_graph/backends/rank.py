"""The work of one rank of a worker group, whatever process it lives in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, cast

import numpy as np

from rlinf_graph.backends.engines import Engines
from rlinf_graph.backends.environments import Registers
from rlinf_graph.backends.slots import Slots
from rlinf_graph.dsl.env import Env
from rlinf_graph.dsl.model import Model
from rlinf_graph.dsl.node import definitions
from rlinf_graph.ir import packed, ragged
from rlinf_graph.ir.batch import Batch, TokenBatch
from rlinf_graph.ir.batches import Examples, Rollouts, Transitions
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import EnvDef, Graph, Node
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.position import Position
from rlinf_graph.ir.program import Gather, Keep, Send, WorkerGroup
from rlinf_graph.ir.value import FunctionRef
from rlinf_graph.nodes.engine import Engine, TrainBatch
from rlinf_graph.nodes.execution import Execution, executing
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.mismatch import Compared
from rlinf_graph.nodes.train import tokenize_examples, train_batch


class Rank:
    """A rank's registers, and the instructions that work on them.

    Attributes:
        bound: batches by parameter of the node.
        outputs: of the last run.
        weight: of the micro-batches accumulated since the last optimizer step.
        queued: micro-batches that are still to be accumulated.
        instead: what the node gets in place of engines, by parameter.
    """

    def __init__(
        self,
        graph: Graph,
        group: WorkerGroup,
        number: int,
        engines: Engines,
        environments: Registers,
        registers: MutableMapping[str, Any],
        seed: int,
    ) -> None:
        """Nothing has run."""
        self.node = graph.node(group.name)
        self.bound: dict[str, Batch] = {}
        self.outputs: tuple[Any, ...] = ()
        self.weight = 0.0
        self.queued: list[TrainBatch] = []
        self.instead: dict[str, Engine] = {}
        self._compares = False
        self._group, self._number = group, number
        self._engines, self._registers, self._seed = engines, registers, seed
        self._environments = environments
        self._slots = Slots()
        models = {u.param: _handle(graph, u.model) for u in self.node.models}
        envs = {param: _env_handle(graph.env(name)) for param, name in self.node.envs}
        self._fixed = {**models, **envs, **options_of(self.node)}
        self._sync = graph.syncs().get(self.node.model or "")
        self._told = _told_as(graph, self.node)
        self._kernel = definitions[self.node.type].kernel

    def run(self, at: Position, metrics: Metrics) -> None:
        """Run the node on the bound parameters; on no samples at all only the first time."""
        if self.outputs and self.bound and not any(map(len, self.bound.values())):
            self.outputs = tuple(packed.select(made, []) for made in self.outputs)
            return
        with executing(self._execution(at, metrics)):
            made = self._kernel(**self.bound, **self._fixed)
        self.outputs = made if isinstance(made, tuple) else (made,)

    def aside(self, instruction: Keep | Gather) -> None:
        """Put an output aside, or join what has been."""
        if isinstance(instruction, Keep):
            self._slots.keep(instruction, self.outputs)
        else:
            self._slots.gather(instruction.slot)

    def outgoing(self, send: Send) -> Batch:
        """What goes out to an edge."""
        return self._slots.outgoing(send, self.outputs)

    def repartition(self) -> None:
        """Of a micro-batch that all ranks have bound, keep this one's part of the tokens."""
        longest = next((b for b in self.bound.values() if isinstance(b, TokenBatch)), None)
        if longest is None:  # demonstrations are not tokenized yet: equal numbers of them
            count = len(next(iter(self.bound.values())))
            lengths = np.ones(count, dtype=np.int64)
        else:
            lengths = longest.lengths
        mine = ragged.balanced(lengths, self._group.ranks)[self._number]
        self.bound = {param: packed.select(batch, mine) for param, batch in self.bound.items()}

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
            self._compares = at.epoch == at.minibatch == 0
            self.queued += [train_batch(part) for part in self._calls(tokenized)]
            if self._engines.settings(self._group).parallel.pp == 1:
                self.flush(metrics)

    def flush(self, metrics: Metrics) -> None:
        """Forward and backward of what is queued: a pipeline takes a minibatch at once."""
        batches, self.queued = self.queued, []
        loss = self.node.option("loss")
        compared = Compared(loss) if self._compares else loss
        self.weight += self.trainer.accumulate(batches, compared, metrics)

    def _calls(self, bound: dict[str, Batch]) -> Iterator[dict[str, Batch]]:
        """The micro-batch, in as many calls as the plan's limit of tokens asks for; none, if empty.

        A filter may have left a micro-batch without samples.
        """
        samples = cast("TokenBatch", bound["samples"])
        budget = self._engines.settings(self._group).micro_tokens
        if not len(samples):
            return
        if budget is None:
            yield bound
            return
        for rows in ragged.within_tokens(samples.lengths, budget):
            yield {param: packed.select(batch, rows) for param, batch in bound.items()}

    def _refuse_stale(self, at: Position) -> None:
        sync, samples = self._sync, self.bound["samples"]
        if sync is None or not isinstance(samples, Rollouts | Transitions):
            return
        versions = packed.host(samples.versions)
        versions = (
            versions[packed.host(samples.mask)] if isinstance(samples, Rollouts) else versions
        )
        if not len(versions):
            return
        oldest = int(versions.min())
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
        made = Metrics()
        self.trainer.optimizer_step(self.node.option("optimizer"), weight, made)
        metrics.merge(made.renamed(self._metric_of_update))
        self.weight = 0.0

    def _metric_of_update(self, name: str) -> str:
        """What an update says under the name of its own model, where several are trained."""
        _space, _slash, rest = name.partition("/")
        return f"{self._told}/{rest}"

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
            engines=self._engines.of(self._group, self._number) | self.instead,
            versions=self._engines.versions(self._group, self._number),
            registers=self._registers,
            metrics=metrics,
            steps=at.steps,
            environments=self._environments.of(self.node),
        )


def options_of(node: Node) -> dict[str, Any]:
    """A node's options as its kernel takes them: functions themselves, not references."""
    return {name: _unwrapped(value) for name, value in node.options}


def _unwrapped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _unwrapped(v) for k, v in cast("Mapping[str, Any]", value).items()}
    return value.function if isinstance(value, FunctionRef) else value


def _handle(graph: Graph, name: str) -> Model:
    """What a kernel gets for a model; its engine it finds by the parameter's name."""
    model = graph.model(name)
    env = _env_handle(graph.env(model.env)) if model.env else None
    return Model(model.path, name=model.name, head=cast("Any", model.head), env=env)


def _env_handle(env: EnvDef) -> Env:
    """What a kernel gets for an environment; its engine's copies it finds by the parameter."""
    return Env(str(env.path), count=env.count, name=env.name)


def _told_as(graph: Graph, node: Node) -> str:
    """`train` for a policy's updates, `value` for a critic's; with its name beside one like it."""
    heads = {model.name: model.head for model in graph.models}
    head = heads.get(node.model or "", "")
    alike = [n for n in graph.with_role(Role.TRAIN) if heads.get(n.model or "", "") == head]
    space = "value" if head == "value" else "train"
    return f"{space}/{node.model}" if len(alike) > 1 else space
