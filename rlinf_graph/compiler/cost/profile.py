"""Profiles: what was measured on real devices, as a file, and where it may be used.

A correction belongs to a node type with its model, engine and device, not to a pipeline: it
holds for the same node at any size.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from statistics import NormalDist
from typing import Literal

from pydantic import Field, ValidationError

from rlinf_graph.compiler.cost.passes import Parts
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import Graph, ModelDef, Node
from rlinf_graph.ir.measurement import Kind, Measurement
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.operations import Operations
from rlinf_graph.ir.plan import Form
from rlinf_graph.ir.value import FunctionRef

CODE = "RG0408"
FORMAT = 1
PACKAGES = ("torch", "transformers", "rlinf-graph")
HOST = "host"
SYNC = "sync"
HANDOVER = "handover"
NOT_SCALED = ("communication", "all-reduce")
"""Ends of the causes that one device alone cannot show."""


@dataclass(frozen=True)
class Subject:
    """What a correction is of.

    Attributes:
        type: node type; `sync` for deliveries of weights, `handover` for the way of any batch.
        digest: of the model's shape, head and number format; of a host node, of its functions and
            the path of its data; empty for neither.
        engine: empty for host nodes and syncs.
        device: device type's name; `host` for host nodes.
    """

    type: str
    digest: str = ""
    engine: str = ""
    device: str = HOST


class Correction(Form):
    """`seconds = overhead_s + factor × estimate`, for one kind of instruction.

    Attributes:
        subject, kind: what it corrects.
        overhead_s: seconds of each instruction.
        factor: without a unit.
        residual: root mean square of the fit's relative errors.
        spread: of one time the work is done against the next, as the standard deviation of the
            logarithm of its seconds.
        measurements: how many sizes it was fitted to.
    """

    subject: Subject
    kind: Kind
    overhead_s: float = Field(ge=0)
    factor: float = Field(ge=0)
    residual: float = Field(default=0.0, ge=0)
    spread: float = Field(default=0.0, ge=0)
    measurements: int = Field(default=1, ge=1)

    def seconds(self, estimate: float) -> float:
        """What it takes by measurement."""
        return self.overhead_s + self.factor * estimate

    def parts(self, parts: Parts, ranks: int = 1) -> Parts:
        """Seconds by cause; communication stays as it was, which one device cannot show.

        Of `ranks` that do a part each and have to wait for one another, the slowest counts.
        """
        made = {
            cause: seconds if cause.endswith(NOT_SCALED) else seconds * self.factor
            for cause, seconds in parts.items()
        }
        made["overhead"] = self.overhead_s
        if ranks > 1 and self.spread:
            work = sum(s for cause, s in made.items() if not cause.endswith(NOT_SCALED))
            made["slowest rank"] = work * (self.slowest(ranks) - 1)
        return made

    def slowest(self, ranks: int) -> float:
        """The median of the longest of so many times, by that of one.

        Times whose logarithm is normal: all of `ranks` are below the quantile `p` with probability
        `p ** ranks`, which is a half at `p = 0.5 ** (1 / ranks)`.
        """
        return math.exp(self.spread * NormalDist().inv_cdf(0.5 ** (1 / ranks)))


class Machine(Form):
    """What was measured on.

    Attributes:
        device, kind: of the devices.
        devices: of the machine.
        cpus: processor cores of the machine.
        memory: bytes of a device.
        memory_bandwidth: bytes a second, as the estimates were made with.
        flops: operations a second by number format, as the estimates were made with.
        processor: the processor's name.
    """

    device: str
    kind: str
    devices: int
    cpus: int
    memory: float
    memory_bandwidth: float
    flops: dict[str, float]
    processor: str

    @classmethod
    def of(cls, group: NodeGroup) -> Machine:
        """A machine of a node group, with the processor of this one."""
        device = group.device
        return cls(
            device=device.name,
            kind=device.kind,
            devices=group.devices_per_node,
            cpus=group.cpus,
            memory=device.memory,
            memory_bandwidth=device.memory_bandwidth,
            flops=dict(device.flops),
            processor=processor_name(),
        )


class Profile(Form):
    """A profile file.

    Attributes:
        pipeline, graph: what was measured; for the reader, since corrections hold elsewhere too.
        machine, versions: with what; a profile is refused where they differ.
        date: ISO 8601.
        measurements: raw.
        corrections: fitted to them.
        file: where it was read from; not written.
    """

    format: Literal[1] = FORMAT
    pipeline: str
    graph: str
    date: str
    machine: Machine
    versions: dict[str, str]
    corrections: tuple[Correction, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    file: str = Field(default="", exclude=True)

    @cached_property
    def _known(self) -> dict[tuple[Subject, str], Correction]:
        return {(c.subject, c.kind): c for c in self.corrections}

    def find(self, subject: Subject, kind: Kind) -> Correction | None:
        """The correction of what has been measured."""
        return self._known.get((subject, kind))


def dumps(profile: Profile) -> str:
    """JSON."""
    return profile.model_dump_json(indent=1) + "\n"


def loads(text: str, file: str) -> Profile:
    """Read a profile.

    Raises:
        CompileError: RG0408, for text that is no profile.
    """
    try:
        return Profile.model_validate_json(text).model_copy(update={"file": file})
    except ValidationError as error:
        notes = tuple(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise fail(CODE, f"{file} is no profile", notes=notes, help=(_again(),)) from None


def check_profile(profile: Profile, cluster: Cluster) -> None:
    """Refuse a profile of other hardware or other versions.

    Memory counts for GPUs only: what a processor core has free changes from call to call.

    Raises:
        CompileError: RG0408, with every difference.
    """
    found = [*_machine_differs(profile.machine, cluster), *_versions_differ(profile.versions)]
    if found:
        notes = tuple(f"{what}: {old} in the profile, {new} here" for what, old, new in found)
        name = profile.file or "the profile"
        message = f"{name} was measured on another machine or with other versions"
        raise fail(CODE, message, notes=notes, help=(_again(),))


def check_use(profile: Profile, graph: Graph, *, used: bool) -> None:
    """Refuse a profile that has measured nothing of a graph.

    Raises:
        CompileError: RG0408.
    """
    if not used:
        name = profile.file or "the profile"
        types = ", ".join(sorted({c.subject.type for c in profile.corrections})) or "nothing"
        raise fail(
            CODE,
            f"{name} has measured none of the nodes of `{graph.name}`",
            graph.span,
            notes=(f"it was made for `{profile.pipeline}` and has {types}, of other models",),
            help=(_again(),),
        )


def subject_of_model(
    node_type: str, model: ModelDef, shape: ModelShape, dtype: str, engine: str, device: str
) -> Subject:
    """The subject of a device node or, with type `sync` and no engine, of a delivery."""
    meaning = {**asdict(shape), "head": model.head, "dtype": dtype}
    return Subject(type=node_type, digest=_digest(meaning), engine=engine, device=device)


def subject_of_host(node: Node) -> Subject:
    """The subject of a host node."""
    functions = {n: v.digest for n, v in node.options if isinstance(v, FunctionRef)}
    if node.role is Role.SOURCE:
        functions["path"] = str(node.option("path"))
    return Subject(type=node.type, digest=_digest(functions) if functions else "")


def subject_of_module(node: Node, work: Operations, engine: str, device: str) -> Subject:
    """The subject of a node whose module was traced: its weights and operators, at any size."""
    operators = sorted({made.name for made in work.table})
    meaning = [subject_of_host(node).digest, work.parameters, operators]
    return Subject(type=node.type, digest=_digest(meaning), engine=engine, device=device)


def versions_here() -> dict[str, str]:
    """Python's and the installed packages' versions; builds of the same version count as one."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of this machine's processor."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
    except OSError:
        named = None
    return named[1].strip() if named else platform.processor() or platform.machine()


def _machine_differs(old: Machine, cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    groups = [g for g in cluster.groups if g.device.name == old.device]
    if not groups:
        yield "device", old.device, ", ".join(g.device.name for g in cluster.groups)
        return
    new = Machine.of(groups[0])
    if old.kind == "cpu":
        compared = ("processor", "cpus", "memory_bandwidth", "flops")
    else:
        compared = ("memory", "memory_bandwidth", "flops")
    for name in compared:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield name.replace("_", " "), _shown(before), _shown(after)


def _versions_differ(old: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    new = versions_here()
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield name, old.get(name, "none"), new.get(name, "none")


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _digest(meaning: object) -> str:
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def _again() -> str:
    return "make one here: rlinf-graph profile FILE --cluster C -o PROFILE"
