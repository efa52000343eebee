"""Whether the engines that a plan names can do what it asks of them, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import Diagnostic, raise_errors
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.plan import Plan
from rlinf_graph.nodes.capabilities import Layout, Support, architecture_of, layout_refusal
from rlinf_graph.nodes.installed import Installed
from rlinf_graph.nodes.registry import capabilities_of, engine_names

PLANNED = "such a plan can be made and explained, not run"


def check_engines(
    graph: Graph,
    plan: Plan,
    cluster: Cluster,
    installed: Installed | None = None,
    shapes: Mapping[str, tuple[bool, bool]] | None = None,
) -> None:
    """Return when every engine is there and can run its node as planned.

    Args:
        graph: of the plan.
        plan: names the engines.
        cluster: says on which kind of device each runs.
        installed: what engines have of what they need; by default here.
        shapes: by model, whether its embeddings are tied and whether it is a mixture of experts.

    Raises:
        CompileError: RG0513, a diagnostic for each node.
    """
    found: list[Diagnostic] = []
    for leaf in plan.leaves():
        node, settings = graph.node(leaf.node), plan.settings(leaf.node)
        kind = cluster.group_of(leaf.devices[0]).device.kind
        tied, mixture = (shapes or {}).get(node.model or "", (False, False))
        layout = Layout(settings, tied=tied, mixture=mixture)
        path = graph.model(node.model).path if node.model else ""
        problems = _problems(node, layout, kind, installed or Installed(), path)
        found += [problem for problem in [next(problems, None)] if problem is not None]
    raise_errors(found)


def _problems(
    node: Node, layout: Layout, kind: str, installed: Installed, path: str
) -> Iterator[Diagnostic]:
    name = layout.settings.engine
    if name not in engine_names():
        yield _refused(
            node,
            f"there is no engine `{name}`, which the plan names for `{node.name}`",
            notes=(f"known: {', '.join(engine_names())}",),
            help=("`rlinf-graph run` without --plan plans with what is installed",),
        )
        return
    does = capabilities_of(name)
    support = does.kinds.get(kind)
    if support is None:
        yield _refused(node, f"engine `{name}` of `{node.name}` does not run on {kind}s")
        return
    yield from _absent(node, name, support, installed)
    if not installed.hosts(name):
        message = f"engine `{name}` of `{node.name}` needs processes of its own"
        yield _refused(node, message, help=("--backend ray",))
    family = architecture_of(path)
    if family and does.architectures and family not in does.architectures:
        message = f"engine `{name}` of `{node.name}` knows no models of type `{family}`"
        yield _refused(node, message, notes=(f"it knows: {', '.join(does.architectures)}",))
    if refusal := layout_refusal(support, layout):
        yield _refused(
            node,
            f"engine `{name}` cannot run `{node.name}` as planned: {refusal}",
            notes=(f"on {kind}s it spreads a model by: {', '.join(support.axes)}", PLANNED),
        )


def _absent(node: Node, name: str, support: Support, installed: Installed) -> Iterator[Diagnostic]:
    """What the engine needs and the interpreter that it runs in does not have."""
    if lacking := installed.lacking(name, support):
        python = installed.python(name)
        what = "; ".join(map(str, lacking)) + (f" in {python}" if python else "")
        yield _refused(
            node,
            f"engine `{name}` of `{node.name}` cannot start: {what}",
            notes=support.notes,
            help=(
                support.install,
                f"--python {name}=PATH, for an environment that has it",
                "`rlinf-graph run` without --plan plans with what is installed",
            ),
        )


def _refused(
    node: Node, message: str, notes: tuple[str, ...] = (), help: tuple[str, ...] = ()
) -> Diagnostic:
    return Diagnostic("RG0513", message, node.span, notes=notes, help=help)
