"""The diagnostic for a pipeline that fits in no way."""

from __future__ import annotations

from collections.abc import Mapping

from rlinf_graph.compiler.check_plan import device_nodes
from rlinf_graph.compiler.schedule.families import Infeasible
from rlinf_graph.compiler.schedule.memory import RESERVED
from rlinf_graph.compiler.schedule.mends import Case, Try, mends
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.plan import leaves_of


def no_plan_fits(
    case: Case,
    infeasible: Mapping[str, Infeasible],
    unable: Mapping[str, tuple[str, str]],
    attempt: Try,
) -> CompileError:
    """RG0401 with the parts of the node that lacks least memory; otherwise what has no layout.

    Args:
        case: what does not fit.
        infeasible: by mode, the placement that lacks least.
        unable: nodes without a layout, with a code and the reason.
        attempt: whether a changed case fits.
    """
    graph, cluster = case.graph, case.cluster
    short = [found for found in infeasible.values() if found.short is not None]
    if not short:
        if not device_nodes(graph):
            message = f"nothing in `{graph.name}` trains or evaluates a model"
            note = "batches that no such node reads are not computed"
            help_text = ("rl.train(...), or rl.evaluate(...)",)
            found = Diagnostic("RG0205", message, graph.span, notes=(note,), help=help_text)
            return CompileError([found])
        notes = tuple(f"{name}: {why}" for name, (_code, why) in unable.items())
        if any(code != "RG0403" for code, _why in unable.values()):
            code, what = next(pair for pair in unable.values() if pair[0] != "RG0403")
            name = next(name for name, pair in unable.items() if pair == (code, what))
            message = f"`{name}` cannot be laid out so: {what}"
            return CompileError([Diagnostic(code, message, graph.node(name).span)])
        message = f"no layout of `{graph.name}` divides its batches on {cluster.name}"
        return CompileError([Diagnostic("RG0403", message, graph.span, notes=notes)])
    nearest = min(short, key=lambda found: found.short.over if found.short else 0.0)
    return CompileError([_memory(case, nearest, attempt)])


def _memory(case: Case, nearest: Infeasible, attempt: Try) -> Diagnostic:
    short = nearest.short
    if short is None:
        raise ValueError("this placement does not lack memory")
    leaf = next(x for x in leaves_of(nearest.placement) if x.node == short.node)
    device = case.cluster.group_of(short.device).device
    per = "GPU" if device.kind == "gpu" else "core"
    parts = "  ".join(f"{name} {size / 1e9:.1f}" for name, size in nearest.parts if size)
    where = f" by {case.cluster.file}" if case.cluster.file.endswith(".toml") else ""
    others = f"  other nodes {short.others / 1e9:.1f}" if short.others else ""
    return Diagnostic(
        "RG0401",
        f"`{short.node}` on {len(leaf.devices)} × {device.name} needs {short.needed / 1e9:.1f} GB "
        f"per {per}, {short.available / 1e9:.1f} GB available ({short.over / 1e9:.1f} GB over)",
        case.graph.node(short.node).span,
        label=f"{short.over / 1e9:.1f} GB too much",
        notes=(
            f"GB: {parts}{others}",
            f"{device.memory / 1e9:.1f} GB a {per}{where}, {RESERVED:.0%} of it reserved",
            "every other placement on this cluster lacks more",
        ),
        help=mends(case, short, attempt),
    )
