"""The engines that a user names exist, and do what they are named for."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors, suggest
from rlinf_graph.ir.graph import Graph, ModelDef
from rlinf_graph.nodes.capabilities import architecture_of
from rlinf_graph.nodes.installed import Installed
from rlinf_graph.nodes.registry import capabilities_of, engine_names

TASKS = {"rollout": "generate", "train": "train"}
"""What an engine has to do in each role."""


def check_named_engines(graph: Graph, cluster: Cluster, installed: Installed | None) -> None:
    """Return when every engine that a model names can do what it is named for.

    Args:
        graph: with the models.
        cluster: on whose devices they are to work.
        installed: ask for what they need, too; None where the plan is not going to run here.

    Raises:
        CompileError: RG0513, one diagnostic for each model and role.
    """
    kinds = sorted({group.device.kind for group in cluster.groups})
    found = [
        next(_problems(model, role, name, kinds, installed), None)
        for model in graph.models
        for role, name in model.engines
    ]
    raise_errors([diagnostic for diagnostic in found if diagnostic is not None])


def _problems(
    model: ModelDef, role: str, name: str, kinds: list[str], installed: Installed | None
) -> Iterator[Diagnostic]:
    who = f"`{name}`, the {role} engine of `{model.name}`,"
    if name not in engine_names():
        message = f"there is no engine `{name}`, which `{model.name}` names for {role}"
        yield Diagnostic("RG0513", message, model.span, help=(suggest(name, engine_names()),))
        return
    does = capabilities_of(name)
    if TASKS[role] not in does.tasks:
        able = [n for n in engine_names() if TASKS[role] in capabilities_of(n).tasks]
        yield Diagnostic("RG0513", f"{who} does not {TASKS[role]}", model.span,
                         help=(f"{role}: {', '.join(able)}",))  # fmt: skip
    if model.head not in does.heads:
        yield Diagnostic("RG0513", f"{who} knows no models with head `{model.head}`", model.span,
                         notes=(f"it knows: {', '.join(does.heads)}",))  # fmt: skip
    here = [kind for kind in kinds if kind in does.kinds]
    if not here:
        yield Diagnostic("RG0513", f"{who} does not run on {' or '.join(kinds)}s", model.span)
        return
    if installed is None:
        return
    family = architecture_of(model.path)
    if family and does.architectures and family not in does.architectures:
        yield Diagnostic("RG0513", f"{who} knows no models of type `{family}`", model.span,
                         notes=(f"it knows: {', '.join(does.architectures)}",))  # fmt: skip
    if not installed.hosts(name):
        yield Diagnostic("RG0513", f"{who} needs processes of its own", model.span,
                         help=("--backend ray",))  # fmt: skip
    elif not any(installed.has(name, kind) for kind in here):
        support = does.kinds[here[0]]
        lacking = "; ".join(map(str, installed.lacking(name, support)))
        where = f" in {installed.python(name)}" if installed.python(name) else ""
        yield Diagnostic(
            "RG0513",
            f"{who} cannot start: {lacking}{where}",
            model.span,
            notes=support.notes,
            help=(support.install, f"--python {name}=PATH, for an environment that has it"),
        )
