"""The engines that are known: what they can do, and what of them is installed."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.nodes.capabilities import Capabilities, Support
from rlinf_graph.nodes.installed import Installed, packages_of
from rlinf_graph.nodes.registry import capabilities_of, engine_names


def engines_text(installed: Installed) -> str:
    """Every engine in a few lines, without importing any."""
    return "\n".join(line for name in engine_names() for line in _lines(name, installed)) + "\n"


def _lines(name: str, installed: Installed) -> Iterator[str]:
    does = capabilities_of(name)
    yield f"{name}: {', '.join(does.tasks)} · heads {', '.join(does.heads)}"
    yield f"    {_facts(does)}"
    if python := installed.python(name):
        yield f"    runs in {python}"
    for kind, support in does.kinds.items():
        packages = packages_of(support, installed.python(name))
        state = "installed" if all(package.fits for package in packages) else "not installed"
        yield f"    {kind}: {state} ({'; '.join(map(str, packages))})"
        yield f"        {_layouts(support)}"
        yield f"        types {', '.join(support.dtypes)}" + _offload(support)
        if state != "installed" and support.install:
            yield f"        {support.install}"
        if not support.unasked:
            yield "        only where it is named"
        yield from (f"        {note}" for note in support.notes)


def _facts(does: Capabilities) -> str:
    facts = ["keyed randomness" if does.keyed else "a random generator of its own"]
    facts += [f"models {', '.join(does.architectures)}"] if does.architectures else []
    facts += ["in processes of its own"] if does.hosted else []
    facts += ["interrupts and resumes"] if does.interrupts else []
    return " · ".join([*facts, f"takes weights by {', '.join(does.sync)}"])


def _layouts(support: Support) -> str:
    text = f"spreads by {', '.join(support.axes)}"
    text += f"; planned, not run: {', '.join(support.planned)}" if support.planned else ""
    apart = [f"{one} with {other}" for one, other in support.apart]
    apart += [f"{axis} with tied embeddings" for axis in support.untied]
    apart += [f"{axis} with experts" for axis in support.dense]
    apart += [] if support.mixtures else ["mixtures of experts"]
    return text + (f"; not {', '.join(apart)}" if apart else "")


def _offload(support: Support) -> str:
    return f"; offloads {', '.join(support.offload)}" if support.offload else ""
