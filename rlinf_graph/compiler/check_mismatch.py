"""Where rollout and training compute differently, the loss has to know with what was sampled."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.work import Generate
from rlinf_graph.nodes.registry import capabilities_of, engine_names


def check_mismatch(graph: Graph, plan: Plan, cluster: Cluster) -> Plan:
    """Return the plan.

    Raises:
        CompileError: RG0306, for a policy that one engine, or precision, samples from and another
            trains, with a loss in which the behaviour log-probabilities do not stand.
    """
    raise_errors(list(_uncorrected(graph, plan, cluster)))
    return plan


def _uncorrected(graph: Graph, plan: Plan, cluster: Cluster) -> Iterator[Diagnostic]:
    able = [n for n in engine_names() if {"generate", "train"} <= set(capabilities_of(n).tasks)]
    for model, trainer in graph.trainers().items():
        loss = trainer.option("loss")
        if getattr(loss, "corrects_staleness", True) or model not in graph.syncs():
            continue
        for reader in graph.readers(model):
            if not isinstance(reader.work, Generate) or not _learned(graph, reader, trainer):
                continue
            if reason := _difference(graph, plan, cluster, reader, trainer):
                yield Diagnostic(
                    "RG0306",
                    f"`{trainer.name}` ignores the behaviour log-probabilities, and {reason}",
                    trainer.at("loss"),
                    label=f"{type(loss).__name__} with old={getattr(loss, 'old', None)!r}",
                    notes=(f"`{reader.name}` samples at {reader.span}",),
                    help=(
                        'old="behaviour" in the loss, or truncate=2.0 beside the `old` it has',
                        *(
                            f'one engine for both: rollout="{n}", train="{n}" in rl.Model'
                            for n in able
                        ),
                    ),
                )


def _learned(graph: Graph, reader: Node, trainer: Node) -> bool:
    """Whether what a node samples is what is trained on."""
    edge = trainer.input("samples")
    return edge is not None and graph.node(edge.source.node) is reader


def _difference(
    graph: Graph, plan: Plan, cluster: Cluster, reader: Node, trainer: Node
) -> str | None:
    """What sampling and training do not have in common."""
    names = [plan.settings(node.name).engine for node in (reader, trainer)]
    if names[0] != names[1]:
        return f"{names[0]} samples and {names[1]} trains"
    kinds = [_kind(plan, cluster, node) for node in (reader, trainer)]
    if kinds[0] != kinds[1] and graph.model(trainer.model or "").dtype == "auto":
        types = {"gpu": "bfloat16", "cpu": "float32"}
        return f"sampling is in {types[kinds[0]]} and training in {types[kinds[1]]}"
    return None


def _kind(plan: Plan, cluster: Cluster, node: Node) -> str:
    return cluster.group_of(plan.devices(node.name)[0]).device.kind
