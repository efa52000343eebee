"""What engines can do, as data: read without importing an engine or what it needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rlinf_graph.ir.plan import NodePlan, Parallel

Task = Literal["generate", "reply", "forward", "train", "act"]
AXES = ("dp", "tp", "pp", "vp", "cp", "ep")


@dataclass(frozen=True)
class Support:
    """What an engine can do on one kind of device.

    Attributes:
        axes: over which it spreads a model: `dp`, `tp`, `pp`, `vp`, `cp`, `ep`, `fsdp`;
            `optimizer` where data-parallel ranks always share the optimizer's states.
        planned: axes besides, which plans for other machines may name and nothing here runs yet.
        packages: distributions that have to be installed, as requirements with versions.
        install: the command that installs them.
        unasked: whether the compiler may choose it without being asked for it by name.
        apart: pairs of axes that cannot both be over 1.
        untied: axes that cannot be over 1 for a model whose embeddings are tied.
        dense: axes that cannot be over 1 for a mixture of experts.
        mixtures: whether it can do mixtures of experts.
        selective: whether it can recompute activations selectively.
        dtypes: types of the weights.
        offload: parts that really leave the device: `weights`, `cache`, `optimizer`.
        notes: what else somebody who chooses it should know, a sentence each.
    """

    axes: tuple[str, ...]
    planned: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    install: str = ""
    unasked: bool = True
    apart: tuple[tuple[str, str], ...] = ()
    untied: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    mixtures: bool = True
    selective: bool = False
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    offload: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What the compiler and the backends may ask of an engine.

    Attributes:
        name: of the engine.
        tasks: `generate` text, `reply` in dialogs, `forward` over given samples, `train`, `act` in
            environments.
        heads: of models that it loads.
        kinds: by kind of device, what it can do there; none on others.
        sync: methods by which it takes weights.
        keyed: whether samples depend only on their `Key`, not on what they are sampled with.
        small: whether it knows small networks.
        architectures: `model_type` of the configurations of transformers that it knows; empty for
            any.
        hosted: whether it lives in worker processes of its own, one for each device.
        joined: whether the replicas of a node are one world of torch.distributed, in which the
            engine sums gradients and weights itself.
        interrupts: whether `abort` and `resume` do something.
        by: whose software it is, where that is another than the name says.
    """

    name: str
    tasks: tuple[Task, ...]
    heads: tuple[str, ...]
    kinds: Mapping[str, Support]
    sync: tuple[str, ...] = ("copy", "broadcast")
    keyed: bool = False
    small: bool = False
    architectures: tuple[str, ...] = ()
    hosted: bool = False
    joined: bool = False
    interrupts: bool = False
    by: str = ""


@dataclass(frozen=True)
class Layout:
    """What decides whether an engine can spread a model: the settings, and the model's make."""

    settings: NodePlan
    tied: bool = False
    mixture: bool = False


def layout_refusal(support: Support, layout: Layout) -> str | None:
    """Why a model cannot be spread so; None where it can."""
    degrees = degrees_of(layout.settings.parallel)
    wide = [axis for axis, degree in degrees.items() if degree > 1]
    for axis in wide:
        if axis not in support.axes:
            return f"it cannot do {axis} {degrees[axis]}"
        if layout.tied and axis in support.untied:
            return f"it cannot do {axis} {degrees[axis]} with tied embeddings"
        if layout.mixture and axis in support.dense:
            return f"it cannot do {axis} {degrees[axis]} with a mixture of experts"
    for one, other in support.apart:
        if one in wide and other in wide:
            return f"it cannot do {one} {degrees[one]} with {other} {degrees[other]}"
    if layout.mixture and not support.mixtures:
        return "it cannot do mixtures of experts"
    if layout.settings.recompute == "selective" and not support.selective:
        return "it cannot recompute selectively"
    return None


def architecture_of(path: str) -> str:
    """`model_type` of a folder's `config.json`; empty where there is no such file to read."""
    try:
        return json.loads((Path(path) / "config.json").read_text("utf-8")).get("model_type", "")
    except (OSError, ValueError, AttributeError):
        return ""


def degrees_of(parallel: Parallel) -> dict[str, int]:
    """Axis → degree, of every axis that an engine has to know."""
    degrees = {axis: getattr(parallel, axis) for axis in AXES}
    return degrees if parallel.shard == "none" else degrees | {parallel.shard: parallel.dp}
