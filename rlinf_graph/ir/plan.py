"""The compiler's output: where, how and in which order each node runs. Versioned JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from rlinf_graph.ir.diagnostic import Diagnostic, fail

FORMAT = 1
MOST_DEVICES = 10**6


def parse_devices(text: str | Sequence[int]) -> tuple[int, ...]:
    """Device ids of `"0-3,6"`; a sequence of ids is taken as it is.

    Raises:
        ValueError: for text of another form.
    """
    if not isinstance(text, str):
        return tuple(int(d) for d in text)
    ids: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ValueError(f"`{part}` is no device range; write 0-3,6")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < MOST_DEVICES:
            raise ValueError(f"`{part}` is no device range: the lower id comes first")
        ids += range(first, last + 1)
    return tuple(ids)


def show_devices(ids: Sequence[int]) -> str:
    """The shortest text that `parse_devices` reads as `ids`."""
    runs: list[list[int]] = []
    for device in ids:
        if runs and device == runs[-1][1] + 1:
            runs[-1][1] = device
        else:
            runs.append([device, device])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)


DeviceSet = Annotated[
    tuple[int, ...], BeforeValidator(parse_devices), PlainSerializer(show_devices)
]


class Form(BaseModel):
    """Immutable, and strict about fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Parallel(Form):
    """How one node is spread over its devices: `tp * pp * cp * dp` of them.

    `ep` divides the experts of a mixture over `dp`; `shard` says whether data-parallel replicas
    hold all states (`none`), all but a part each of the optimizer's (`optimizer`, ZeRO-1), or a
    part of each (`fsdp`); `vp` cuts the layers of a pipeline rank into as many stages, which take
    turns (interleaved 1F1B, Narayanan et al. 2021).
    """

    dp: int = Field(default=1, ge=1)
    tp: int = Field(default=1, ge=1)
    pp: int = Field(default=1, ge=1)
    cp: int = Field(default=1, ge=1)
    ep: int = Field(default=1, ge=1)
    vp: int = Field(default=1, ge=1)
    shard: Literal["none", "optimizer", "fsdp"] = "none"

    @property
    def devices(self) -> int:
        """Devices of the node."""
        return self.dp * self.tp * self.pp * self.cp

    def __str__(self) -> str:
        """Short, as explain prints it: `fsdp 8`, `tp 2 × 4`."""
        inner = [f"{n} {s}" for n in ("tp", "pp", "vp", "cp") if (s := getattr(self, n)) > 1]
        if self.shard == "fsdp" and self.dp > 1:
            return " ".join([*inner, f"fsdp {self.dp}"])
        return " ".join(inner) + (f" × {self.dp}" if inner and self.dp > 1 else "") or (
            f"dp {self.dp}" if self.dp > 1 else "-"
        )


class Leaf(Form):
    """A node on the devices that its place in the tree gives it."""

    kind: Literal["node"] = "node"
    node: str
    devices: DeviceSet


class Turn(Form):
    """Parts that use the same devices one after another.

    `per` says whether they take turns once an iteration or once a micro-batch.
    """

    kind: Literal["turn"] = "turn"
    per: Literal["iteration", "micro_batch"] = "iteration"
    parts: tuple[Placement, ...]


class Split(Form):
    """Parts that run side by side on disjoint devices."""

    kind: Literal["split"] = "split"
    parts: tuple[Placement, ...]


Placement = Annotated[Leaf | Turn | Split, Field(discriminator="kind")]


class NodePlan(Form):
    """One device node's settings.

    Attributes:
        parallel: its layout.
        engine: does the numerical work.
        micro_batch: samples of one kernel call of one replica; None where the engine schedules
            its own batches.
        chunks: the parts in which it takes and emits its stream; 1 makes it a barrier.
        resident: whether its state stays on the device while others have their turn.
        recompute: whether activations are recomputed in the backward pass: all of a layer's from
            its input, or with `selective` what stands between products and every second product.
        balanced: whether data-parallel ranks cut a micro-batch by length, not by number of samples.
        micro_tokens: tokens of one kernel call at most; longer micro-batches take several.
    """

    parallel: Parallel = Parallel()
    engine: str = "torch"
    micro_batch: int | None = Field(default=None, ge=1)
    chunks: int = Field(default=1, ge=1)
    resident: bool = True
    recompute: bool | Literal["selective"] = False
    balanced: bool = False
    micro_tokens: int | None = Field(default=None, ge=1)


DEFAULTS = NodePlan()


class SyncPlan(Form):
    """How and how far behind weights arrive.

    Attributes:
        method: `copy` inside a device, `broadcast` between devices.
        staleness: rollouts of iteration i use the weights of version max(0, i - staleness).
        interrupt: whether they take newer ones that come while they generate.
    """

    method: Literal["copy", "broadcast"] = "copy"
    staleness: int = Field(default=0, ge=0)
    interrupt: bool = False


class PipelineRef(Form):
    """The pipeline a plan was made for."""

    file: str
    name: str
    parameters: dict[str, Any] = {}


class Estimate(Form):
    """What the compiler expected; shown beside measurements, never needed to run."""

    iteration_s: float
    bound_s: float
    proved: bool
    profile: str | None = None


class Plan(Form):
    """The whole decision. `lower` needs nothing else of the compiler."""

    format: Literal[1] = FORMAT
    pipeline: PipelineRef
    graph: str = Field(default="", description="hash of the graph; empty in a plan made by hand")
    cluster: str = ""
    mode: Literal["collocated", "disaggregated", "hybrid", "single"] = "collocated"
    placement: Placement
    nodes: dict[str, NodePlan] = {}
    host: dict[str, int] = Field(default={}, description="host node → processes")
    regions: dict[str, int] = Field(
        default={}, description="region → groups of its samples, each in a step of its own"
    )
    transports: dict[str, Literal["memory", "object_store"]] = {}
    syncs: dict[str, SyncPlan] = {}
    estimate: Estimate | None = None

    def leaves(self) -> list[Leaf]:
        """The device nodes in the order of the tree."""
        return list(leaves_of(self.placement))

    def devices(self, node: str) -> tuple[int, ...]:
        """The devices of a node; none for a host node."""
        return next((leaf.devices for leaf in self.leaves() if leaf.node == node), ())

    def settings(self, node: str) -> NodePlan:
        """A device node's settings; the defaults where the plan gives none."""
        return self.nodes.get(node, DEFAULTS)


def dumps(plan: Plan) -> str:
    """Diffable JSON."""
    return plan.model_dump_json(indent=1, exclude_defaults=False) + "\n"


def loads(text: str, file: str = "plan") -> Plan:
    """Read a plan.

    Raises:
        CompileError: RG0601, one diagnostic for every field that is wrong.
    """
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        found = [
            Diagnostic("RG0601", f"{_path(e['loc'])}: {_said(e['type'], e['msg'])}")
            for e in error.errors()
        ]
        notes = tuple(dict.fromkeys(d.message for d in found))
        help_text = ("rlinf-graph compile FILE -o PLAN writes one",)
        raise fail("RG0601", f"{file} is no plan", notes=notes, help=help_text) from None


def devices_of(placement: Placement) -> tuple[int, ...]:
    """All devices below a part of the tree, in order and without repetition."""
    return tuple(sorted({d for leaf in leaves_of(placement) for d in leaf.devices}))


def mode_of(placement: Placement) -> Literal["collocated", "disaggregated", "hybrid", "single"]:
    """The word for a tree: what explain calls it.

    Collocated: all nodes on the same devices. Disaggregated: every two nodes on the same or on
    disjoint devices. Hybrid: some nodes share only a part of their devices.
    """
    sets = {frozenset(leaf.devices) for leaf in leaves_of(placement)}
    if isinstance(placement, Leaf):
        return "single"
    if len(sets) == 1:
        return "collocated"
    disjoint = sum(len(devices) for devices in sets) == len(frozenset[int]().union(*sets))
    return "disaggregated" if disjoint else "hybrid"


def leaves_of(placement: Placement) -> Iterator[Leaf]:
    """The leaves below a part of the tree, in order."""
    if isinstance(placement, Leaf):
        yield placement
        return
    for part in placement.parts:
        yield from leaves_of(part)


def inner_parts(placement: Placement) -> Iterator[Turn | Split]:
    """The turns and splits of a tree, outer ones first."""
    if not isinstance(placement, Leaf):
        yield placement
        for part in placement.parts:
            yield from inner_parts(part)


def _said(kind: str, message: str) -> str:
    """What pydantic says, in the words of a plan."""
    if kind == "extra_forbidden":
        return "unknown field"
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "the top level"
