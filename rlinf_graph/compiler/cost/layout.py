"""A node's model on its devices: what each of them holds and can do, and what cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rlinf_graph.compiler.cost.constants import (
    GRACE,
    Constants,
    EngineTraits,
)
from rlinf_graph.compiler.cost.execution import PLAIN, Execution
from rlinf_graph.compiler.cost.links import Ring, ring
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.ir.cluster import Cluster, Link
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Generate, Work

SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}


def place_of(devices: Sequence[int]) -> Sequence[int]:
    """Devices as something to remember a figure by; ranges stay as short as they are."""
    return devices if isinstance(devices, range) else tuple(devices)


def dtype_of(model: ModelDef, kind: str) -> str:
    """The number format of a model on a kind of device."""
    if model.dtype == "auto":
        return "bfloat16" if kind == "gpu" else "float32"
    return model.dtype


@dataclass(frozen=True)
class Hardware:
    """What a node's devices can do; of different devices the least of each figure.

    Device numbers are tensor-parallel rank first, then context, data and pipeline.

    Attributes:
        kind: `gpu` or `cpu`.
        memory: bytes of a device.
        memory_bandwidth: bytes a second.
        flops: peak operations a second by number format.
        host_link: to the memory of its machine.
        tensor: a tensor-parallel group.
        context: a context-parallel group.
        data: the devices that hold the same part of the model: data and context ranks.
        experts: the devices that hold a replica's experts together.
        stages: two neighbours of a pipeline.
        replicas: the devices that hold the same experts.
        power: watts of a device; 0 where one's are not known.
        device: the type's name in the catalogue; empty for devices of several types.
    """

    kind: str
    memory: float
    memory_bandwidth: float
    flops: tuple[tuple[str, float], ...]
    host_link: Link
    tensor: Ring
    context: Ring
    data: Ring
    experts: Ring
    stages: Ring
    replicas: Ring
    power: float = 0.0
    device: str = ""

    @property
    def grace(self) -> bool:
        """Whether the processors of its machines are Grace."""
        return self.device in GRACE


def hardware_of(cluster: Cluster, devices: Sequence[int], parallel: Parallel) -> Hardware:
    """The hardware of a node with a layout."""
    types = [group.device for group in cluster.groups_of(devices)]
    dtypes = {dtype for device in types for dtype, _ in device.flops}
    links = [device.host_link for device in types]
    tp, model = parallel.tp, parallel.tp * parallel.cp
    stage = model * parallel.dp
    data = ring(cluster, devices[:stage:tp])
    return Hardware(
        kind="cpu" if any(device.kind == "cpu" for device in types) else "gpu",
        memory=min(device.memory for device in types),
        memory_bandwidth=min(device.memory_bandwidth for device in types),
        flops=tuple((d, min(t.peak(d) for t in types)) for d in sorted(dtypes)),
        host_link=Link(min(k.bandwidth for k in links), max(k.latency for k in links)),
        tensor=ring(cluster, devices[:tp]),
        context=ring(cluster, devices[:model:tp]),
        data=data,
        experts=ring(cluster, devices[: tp * parallel.ep : tp]),
        stages=ring(cluster, devices[: stage + 1 : stage]),
        replicas=ring(cluster, devices[: stage : tp * parallel.ep]) if parallel.ep > 1 else data,
        power=min(device.power for device in types),
        device=types[0].name if len({device.name for device in types}) == 1 else "",
    )


@dataclass(frozen=True)
class Layout:
    """A model on hardware with a node's settings; amounts are those of one device.

    Attributes:
        shape: of the model.
        head: `lm`, `value` or `score`.
        dtype: number format of the weights that are multiplied.
        hardware: its devices.
        settings: the node's plan.
        constants: of its kind of device.
        execution: how the engine runs passes.
    """

    shape: ModelShape
    head: str
    dtype: str
    hardware: Hardware
    settings: NodePlan
    constants: Constants
    execution: Execution = PLAIN

    @property
    def parallel(self) -> Parallel:
        """The layout's axes."""
        return self.settings.parallel

    @cached_property
    def traits(self) -> EngineTraits:
        """How the engine drives the device; one that is not known is taken for torch."""
        engines = self.constants.engines
        return engines.get(self.settings.engine, engines["torch"])

    @cached_property
    def element(self) -> int:
        """Bytes of a weight and of an activation."""
        return SIZES[self.dtype]

    @cached_property
    def host(self) -> float:
        """Host time on this machine, by that on x86."""
        return self.constants.decoding.grace if self.hardware.grace else 1.0

    @cached_property
    def stage(self) -> float:
        """Share of the layers that the largest pipeline stage has."""
        return math.ceil(self.shape.layers / self.parallel.pp) / self.shape.layers

    @cached_property
    def replica_weights(self) -> float:
        """Weights a device multiplies with: its share of a replica before sharding."""
        shape = self.shape
        experts = shape.expert_matrices / self.parallel.ep
        ends = shape.parameters(self.head) - shape.dense_matrices - shape.expert_matrices
        # Embedding and head stand at the two ends of a pipeline; the larger end decides.
        if self.parallel.pp > 1:
            ends = max(shape.head_matrix(self.head), shape.vocab * shape.hidden)
        body = (shape.dense_matrices + experts) * self.stage
        return (body + ends) / self.parallel.tp

    @cached_property
    def shards(self) -> int:
        """Devices over which equal states are spread."""
        return self.parallel.dp * self.parallel.cp if self.sharded else 1

    @property
    def sharded(self) -> bool:
        """Whether data-parallel ranks hold a part of the states each."""
        return self.parallel.shard == "fsdp" and self.parallel.dp * self.parallel.cp > 1

    @cached_property
    def held_weights(self) -> float:
        """Weights a device keeps. Experts are spread over `ep` ranks already."""
        if not self.sharded:
            return self.replica_weights
        experts = self.shape.expert_matrices * self.stage / self.parallel.ep / self.parallel.tp
        others = self.replica_weights - experts
        return others / self.shards + experts / max(1, self.shards // self.parallel.ep)

    def launch_s(self, passes: float = 1.0) -> float:
        """Host seconds to issue the layers of a stage `passes` times."""
        return passes * self.traits.layer_s * self.shape.launches * self.shape.layers * self.stage


def refusal(shape: ModelShape, work: Work, devices: int, settings: NodePlan) -> str | None:
    """Why a layout cannot run, in words; None when it can."""
    parallel = settings.parallel
    if parallel.devices != devices:
        return f"{parallel} takes {parallel.devices} devices, given {devices}"
    return _uneven(shape, parallel) or _unsupported(shape, work, parallel)


def _uneven(shape: ModelShape, parallel: Parallel) -> str | None:
    if shape.heads % parallel.tp:
        return f"tp {parallel.tp} does not divide {shape.heads} attention heads"
    if shape.kv_heads % parallel.tp and parallel.tp % shape.kv_heads:
        return f"tp {parallel.tp} and {shape.kv_heads} key-value heads do not divide"
    if parallel.pp > shape.layers:
        return f"pp {parallel.pp} is more than {shape.layers} layers"
    if parallel.ep > 1 and not shape.experts:
        return f"ep {parallel.ep}, but the model has no experts"
    if shape.experts and shape.experts % parallel.ep:
        return f"ep {parallel.ep} does not divide {shape.experts} experts"
    if parallel.dp * parallel.cp % parallel.ep:
        return f"ep {parallel.ep} does not divide dp {parallel.dp} times cp {parallel.cp}"
    return None


def _unsupported(shape: ModelShape, work: Work, parallel: Parallel) -> str | None:
    if isinstance(work, Generate):
        if parallel.cp > 1:
            return f"cp {parallel.cp} for sampling is not supported"
        if parallel.shard == "fsdp" and parallel.dp > 1:
            return "sampling with weights sharded over replicas is not supported"
    if parallel.cp > 1 and shape.kv_rank:
        return f"cp {parallel.cp} with latent attention is not supported"
    return None
