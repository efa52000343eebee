"""Weights reach those who read them, and samples are no staler than allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Role


def check_weights(graph: Graph) -> Graph:
    """Return the graph unchanged.

    Raises:
        CompileError: for a trained model that is read and never synced, a bound that is none, and
            training on stale samples without correcting for it.
    """
    rules = (
        _one_trainer,
        _one_sync,
        _trained_models_are_synced,
        _named_ports_are_synced,
        _named_ports_fit,
        _syncs_fit,
        _bounds_hold,
        _interruptions_fit,
    )
    raise_errors([d for rule in rules for d in rule(graph)])
    return graph


def _one_trainer(graph: Graph) -> Iterator[Diagnostic]:
    counts = Counter(n.model for n in graph.with_role(Role.TRAIN))
    for node in graph.with_role(Role.TRAIN):
        if counts[node.model] > 1 and graph.trainers()[node.model or ""] is node:
            yield Diagnostic(
                "RG0304",
                f"`{node.model}` is trained by {counts[node.model]} nodes of one iteration",
                node.span,
                notes=tuple(
                    f"`{other.name}` trains it at {other.span}"
                    for other in graph.with_role(Role.TRAIN)
                    if other.model == node.model and other is not node
                ),
                help=("add the losses up in one rl.train, or go over the samples with epochs=2",),
            )


def _one_sync(graph: Graph) -> Iterator[Diagnostic]:
    for node in graph.with_role(Role.SYNC):
        use = node.models[0]
        last = graph.deliveries()[use.model, use.served]
        if last is not node:
            port = f"the port `{use.served}` of `{use.model}`" if use.served else f"`{use.model}`"
            yield Diagnostic(
                "RG0304",
                f"{port} is synced twice in one iteration",
                last.span,
                notes=(f"the first time at {node.span}",),
                help=("keep one of the two",),
            )


def _trained_models_are_synced(graph: Graph) -> Iterator[Diagnostic]:
    for model, trainer in graph.trainers().items():
        readers = graph.readers(model)
        if readers and model not in graph.syncs():
            yield Diagnostic(
                "RG0301",
                f"`{model}` is trained but never synced: `{readers[0].name}` would keep on "
                "reading the first weights",
                trainer.span,
                label=f"trains `{model}`",
                notes=(f"`{readers[0].name}` reads it at {readers[0].span}",),
                help=(f"weights = rl.train({model}, ...)", f"rl.sync(weights, into={model})"),
            )


def _named_ports_are_synced(graph: Graph) -> Iterator[Diagnostic]:
    """A named port that nothing is delivered to is a frozen model by another name."""
    ports = {
        (use.model, use.served): node for node in graph.nodes for use in node.models if use.served
    }
    for (model, served), reader in ports.items():
        if (model, served) not in graph.deliveries():
            yield Diagnostic(
                "RG0301",
                f"nothing is delivered to the port `{served}` of `{model}`: `{reader.name}` would "
                "keep on reading the first weights",
                reader.span,
                help=(
                    f"{model}.frozen(), to keep them",
                    f"rl.sync(weights, into={served}, every=50), with the port that is read",
                ),
            )


def _named_ports_fit(graph: Graph) -> Iterator[Diagnostic]:
    """Names that explain can tell apart, and decays that leave something of both weights."""
    models = {model.name for model in graph.models}
    for (model, served), node in graph.deliveries().items():
        use = node.models[0]
        if served in models:
            message = f"the port `{served}` of `{model}` has the name of a model"
            yield Diagnostic("RG0106", message, node.span, help=("give it another name",))
        number = isinstance(use.decay, int | float) and not isinstance(use.decay, bool)  # pyright: ignore[reportUnnecessaryIsInstance]  users may not run a checker
        if not number or not 0 <= use.decay < 1:
            yield Diagnostic(
                "RG0104",
                f"`decay` of the port `{served}` is {use.decay!r}; it lies from 0 up to below 1",
                node.span,
                help=(
                    "decay=0.995 moves by a two-hundredth of the way at each delivery",
                    "decay=0.0 takes over the new weights",
                ),
            )


def _syncs_fit(graph: Graph) -> Iterator[Diagnostic]:
    for node in graph.with_role(Role.SYNC):
        source = graph.node(node.inputs[0].source.node) if node.inputs else node
        if source.model != node.model:
            yield Diagnostic(
                "RG0304",
                f"weights of `{source.model}` are synced into `{node.model}`",
                node.span,
                notes=(f"the weights come from `{source.name}` at {source.span}",),
                help=(f"into={source.model}",),
            )


def _bounds_hold(graph: Graph) -> Iterator[Diagnostic]:
    for node in graph.with_role(Role.SYNC):
        bound, every = node.option("max_staleness"), node.option("every")
        if node.models[0].served:  # no sample that is trained on is drawn with its weights
            bound = max(0, every - 1) if isinstance(every, int) else 0
        if not isinstance(bound, int) or bound < 0:
            yield Diagnostic(
                "RG0302",
                f"staleness of `{node.model}` has no bound",
                node.at("max_staleness"),
                label="no bound",
                notes=("without a bound rollout may run ahead of training for ever",),
                help=(
                    "max_staleness=1 lets rollout and training overlap by one iteration",
                    "max_staleness=0 trains on samples of the newest weights only",
                ),
            )
        elif not isinstance(every, int) or every < 1:
            message = f"`every` of `{node.name}` is {every}; it has to be at least 1"
            yield Diagnostic("RG0104", message, node.at("every"))
        elif every - 1 > bound:
            yield Diagnostic(
                "RG0302",
                f"weights of `{node.model}` delivered every {every} iterations are up to "
                f"{every - 1} iterations old, {bound} allowed",
                node.at("every"),
                notes=(f"max_staleness={bound} is the bound",),
                help=(f"max_staleness={every - 1}", f"every={bound + 1}"),
            )
        elif bound > 0 and not node.models[0].served:
            yield from _uncorrected(
                graph, node, f"samples may be {bound} iteration{'s' * (bound > 1)} old"
            )


def _interruptions_fit(graph: Graph) -> Iterator[Diagnostic]:
    """Generation is interrupted where newer weights can come meanwhile."""
    for node in graph.with_role(Role.SYNC):
        interrupt, bound = node.option("interrupt"), node.option("max_staleness")
        every = node.option("every")
        if not isinstance(interrupt, bool):
            message = f"`interrupt` of `{node.name}` is {interrupt!r}; it is True or False"
            yield Diagnostic("RG0104", message, node.at("interrupt"))
        elif interrupt and node.models[0].served:
            message = f"`{node.name}` delivers to a named port, which nobody samples with"
            yield Diagnostic("RG0307", message, node.at("interrupt"))
        elif interrupt and isinstance(bound, int) and isinstance(every, int) and bound < every:
            yield Diagnostic(
                "RG0307",
                f"no newer weights of `{node.model}` come while it generates",
                node.at("interrupt"),
                notes=(f"max_staleness={bound}: it waits for the newest that there can be",),
                help=(f"max_staleness={every}", "interrupt=False"),
            )


def _uncorrected(graph: Graph, sync: Node, why: str) -> Iterator[Diagnostic]:
    trainer = graph.trainers().get(sync.model or "")
    loss = trainer.option("loss") if trainer else None
    if trainer is None or getattr(loss, "corrects_staleness", True):
        return
    yield Diagnostic(
        "RG0303",
        f"`{trainer.name}` ignores the behaviour log-probabilities, and {why}",
        trainer.at("loss"),
        label=f"{type(loss).__name__} with old={getattr(loss, 'old', None)!r}",
        notes=(f"the bound stands at {sync.at('max_staleness')}",),
        help=(
            'old="behaviour" in the loss weighs each token by how much its probability changed',
            *(("max_staleness=0 in rl.sync",) if sync.option("max_staleness") else ()),
        ),
    )
