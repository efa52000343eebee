"""The cost model's public face: `CostModel` answers for nodes, host nodes and weight syncs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlinf_graph.compiler.cost import memory, operations, training
from rlinf_graph.compiler.cost.constants import (
    CONSTANTS,
    HANDOVER_SECONDS,
    HOST_SECONDS,
    Constants,
)
from rlinf_graph.compiler.cost.correct import Corrections, Corrector
from rlinf_graph.compiler.cost.execution import EXECUTIONS, PLAIN
from rlinf_graph.compiler.cost.flops import Adapter
from rlinf_graph.compiler.cost.kernels import Kernels
from rlinf_graph.compiler.cost.layout import (
    SIZES,
    Hardware,
    Layout,
    dtype_of,
    hardware_of,
    place_of,
    refusal,
)
from rlinf_graph.compiler.cost.links import ring
from rlinf_graph.compiler.cost.lookup import shape_of
from rlinf_graph.compiler.cost.node_cost import PROFILED, NodeCost, in_loop, items, moving_s
from rlinf_graph.compiler.cost.passes import Parts, scaled
from rlinf_graph.compiler.cost.profile import Profile
from rlinf_graph.compiler.cost.rollout import Origin, Rollout
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.compiler.cost.sync import Method, Refit
from rlinf_graph.compiler.cost.uncertainty import of_profile, together
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import Graph, ModelDef, Node
from rlinf_graph.ir.measurement import Kind
from rlinf_graph.ir.operations import Operations
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Forward, Generate, HostWork, Train

DeviceWork = Generate | Forward | Train | Operations

ATTENTION = ("q", "k", "v", "o")
"""The projections that adapters are put on."""


class CostModel:
    """Costs of the nodes of one graph on one cluster. Answers are remembered.

    Attributes:
        graph, cluster: what is costed.
        profile: what has been measured; None for closed forms alone.
        corrections: of the profile.
        constants: by kind of device.
        kernels: measured ones, for sampling; None for the roofline alone.
    """

    def __init__(
        self,
        graph: Graph,
        cluster: Cluster,
        profile: Profile | None = None,
        constants: Mapping[str, Constants] = CONSTANTS,
        kernels: Kernels | None = None,
    ) -> None:
        """Work out the models' shapes.

        Raises:
            CompileError: RG0404, for a model whose shape is not known.
        """
        self.graph = graph
        self.cluster = cluster
        self.profile = profile
        self.constants = constants
        self.kernels = kernels
        self.shapes: dict[str, ModelShape] = {m.name: shape_of(m) for m in graph.models}
        self._models: dict[str, ModelDef] = {m.name: m for m in graph.models}
        self.corrections = Corrections(cluster, self._models, self.shapes, profile)
        self._hardware: dict[tuple[Sequence[int], tuple[int, ...]], Hardware] = {}
        self._layouts: dict[tuple[str, Sequence[int], NodePlan], Layout] = {}
        self._samplings: dict[tuple[object, ...], tuple[Parts, Parts, Origin]] = {}
        self._costs: dict[tuple[str, DeviceWork, Sequence[int], NodePlan, float], NodeCost] = {}

    def elsewhere(self, graph: Graph, cluster: Cluster) -> CostModel:
        """The same of another graph or cluster."""
        return CostModel(graph, cluster, self.profile, self.constants, self.kernels)

    def node(
        self, node: Node, devices: Sequence[int], settings: NodePlan, kept: float = 0.0
    ) -> NodeCost:
        """The cost of a device node; `node.work` has been set by the pass `infer_volumes`.

        Args:
            node: rollout, forward or training; an evaluation costs what one run of it does.
            devices: in the order of ranks: tensor parallel first, then context, data, pipeline.
            settings: its layout.
            kept: bytes that other nodes keep on each device meanwhile: a key-value cache has to
                do with the rest.

        Raises:
            CompileError: RG0406, for a layout that cannot run.
        """
        work, place = self._work(node), place_of(devices)
        key = (node.name, work, place, settings, kept if isinstance(work, Generate) else 0.0)
        if key not in self._costs:
            if isinstance(work, Operations):
                self._refuse(node, place, settings)
                hardware = self._hardware_of(place, settings.parallel)
                constants = self.constants[hardware.kind]
                correct = self.corrections.node(node, place, settings)
                made = operations.cost(work, settings, hardware, constants, correct)
                self._costs[key] = in_loop(made, node, settings.chunks)
            else:
                layout = self._layout(node, place, settings)
                self._costs[key] = self._cost(node, work, layout, place, kept)
        return self._costs[key]

    def _cost(
        self,
        node: Node,
        work: Generate | Forward | Train,
        layout: Layout,
        place: Sequence[int],
        kept: float,
        resident: Parts | None = None,
        working: Parts | None = None,
    ) -> NodeCost:
        correct = self.corrections.node(node, place, layout.settings)
        held = resident or memory.resident(layout, isinstance(work, Train))
        if isinstance(work, Generate):
            parts, sampling, origin = self._sampling(node, layout, work, kept)
            made = _sampled(layout, parts, correct, held, sampling, origin)
        else:
            at_work = working or memory.pass_working(layout, work)
            made = _passed(layout, work, correct, held, at_work)
        return in_loop(made, node, layout.settings.chunks)

    def within(
        self, node: Node, devices: range, settings: NodePlan, room: float
    ) -> NodeCost | None:
        """The cost of a device node; None for a layout that cannot run.

        Neither can one that keeps, or in training works with, more than `room` bytes of a device.
        """
        work = self._work(node)
        if self.refusal(node, devices, settings):
            return None
        if isinstance(work, Operations):
            cost = self.node(node, devices, settings)
            return None if sum(size for _part, size in cost.resident) > room else cost
        layout = self._new_layout(node, devices, settings)
        resident, working = memory.resident(layout, isinstance(work, Train)), None
        held = sum(resident.values())
        if isinstance(work, Train):
            working = memory.pass_working(layout, work)
            held += sum(working.values())
        if held > room:
            return None
        return self._cost(node, work, layout, devices, 0.0, resident, working)

    def refusal(self, node: Node, devices: Sequence[int], settings: NodePlan) -> str | None:
        """Why `node` would raise RG0406, in a few words; None when it would not."""
        work = self._work(node)
        if isinstance(work, Operations):
            return operations.refusal(len(devices), settings.parallel)
        return refusal(self.shapes[node.model or ""], work, len(devices), settings)

    def chunk_seconds(
        self, node: Node, devices: Sequence[int], settings: NodePlan, kept: float = 0.0
    ) -> float:
        """Seconds of one of the `settings.chunks` equal parts of a rollout or forward node."""
        return self.node(node, devices, settings, kept).seconds / settings.chunks / node.steps

    def accumulate_seconds(
        self, node: Node, devices: Sequence[int], settings: NodePlan, samples: int
    ) -> float:
        """Seconds of forward and backward over `samples`, spread over all data ranks."""
        work, correct = self._training(node), self.corrections.node(node, devices, settings)
        layout = self._layout(node, devices, settings)
        parts = training.accumulate(layout, work, samples)
        return sum(correct("accumulate", parts).values())

    def optimizer_step_seconds(
        self, node: Node, devices: Sequence[int], settings: NodePlan
    ) -> float:
        """Seconds of one optimizer step: gradients averaged over replicas, clipped, applied."""
        parts = training.optimizer_step(self._layout(node, devices, settings))
        return sum(self.corrections.node(node, devices, settings)("optimizer_step", parts).values())

    def host(self, node: Node, processes: int, group: NodeGroup) -> NodeCost:
        """The cost of a host node with so many processes on the processors of a node group.

        Without work declared, a sample is taken to need 0.1 ms of a core. A profile says what the
        one process takes that a run gives to a host node.
        """
        work = node.work
        if isinstance(work, Operations):
            message = f"`{node.name}` works on processors; what is traced needs a device"
            raise fail("RG0509", message, node.span, help=("@rl.node(place=rl.Place.DEVICE, ...)",))
        if not isinstance(work, HostWork):
            samples = node.volume[0].samples if node.volume else 1
            work = HostWork(samples, HOST_SECONDS, "declared default")
        if made := self.corrections.host(node):
            seconds = made.seconds(work.samples * work.seconds_per_sample)
            width = of_profile(made.residual, made.spread)
            once = NodeCost(seconds, parts=(("host", seconds),), origin=PROFILED, width=width)
            return in_loop(once, node, chunks=1)
        used = max(1, min(processes, group.cpus * group.nodes))
        seconds = work.samples * work.seconds_per_sample / used
        once = NodeCost(seconds, parts=(("host", seconds),), origin=work.origin)
        return in_loop(once, node, chunks=1)

    def handover(self, samples: int) -> float:
        """Seconds until a batch that one worker has is with another; 0 where nobody measured it."""
        made = self.corrections.handover()
        return made.seconds(samples * HANDOVER_SECONDS) if made else 0.0

    def sync(
        self,
        model: str,
        source: Sequence[int],
        target: Sequence[int],
        method: Method,
        *,
        changed: float = 1.0,
        rank: int = 0,
    ) -> NodeCost:
        """What it costs to bring a model's weights from its trainer to who serves it.

        A profile corrects what a device does for it, not the way between devices.

        Args:
            model: name.
            source: the trainer's devices; its layout is not asked for, every device is taken to
                need all of the weights.
            target: those that serve it.
            method: `copy` stays on the trainer's devices; `broadcast` sends all weights to the
                others, `delta` the share that changed, `adapter` those of low-rank adapters.
            changed: share of the weights that differ from the last version, for `delta`.
            rank: of the adapters on the projections of attention, for `adapter`.
        """
        refit = self._refit(model, source, target, method, changed, rank)
        parts, origin = refit.parts(), "roofline"
        width = closed = self.constants_of((*source, *target)).widths.sync
        if made := self.corrections.sync(model, source[0]):
            parts["weights"] = made.seconds(parts["weights"])
            own = of_profile(made.residual, made.spread)
            width = together((s, own if p == "weights" else closed) for p, s in parts.items())
            origin = PROFILED if refit.ring.size == 1 else origin
        return NodeCost(sum(parts.values()), parts=items(parts), origin=origin, width=width)

    def constants_of(self, devices: Sequence[int]) -> Constants:
        """The constants of some devices; of processors where there are several kinds."""
        kinds = {group.device.kind for group in self.cluster.groups_of(devices)}
        return self.constants["cpu" if "cpu" in kinds else "gpu"]

    def _refit(
        self,
        model: str,
        source: Sequence[int],
        target: Sequence[int],
        method: Method,
        changed: float,
        rank: int,
    ) -> Refit:
        definition, shape = self._models[model], self.shapes[model]
        groups = {*self.cluster.groups_of(source), *self.cluster.groups_of(target)}
        kinds = {group.device.kind for group in groups}
        constants = self.constants["cpu" if "cpu" in kinds else "gpu"]
        bandwidth = min(group.device.memory_bandwidth for group in groups)
        devices = list(source) if method == "copy" else sorted({*source, *target})
        weights = shape.parameters(definition.head)
        return Refit(
            shape=shape,
            weights=Adapter(rank, ATTENTION).parameters(shape) if method == "adapter" else weights,
            element=SIZES[dtype_of(definition, "cpu" if "cpu" in kinds else "gpu")],
            ring=ring(self.cluster, devices),
            bandwidth=bandwidth * constants.decoding.bandwidth,
            constants=constants.iteration,
            changed=changed if method == "delta" else 1.0,
        )

    def _sampling(
        self, node: Node, layout: Layout, work: Generate, kept: float
    ) -> tuple[Parts, Parts, Origin]:
        """Seconds of one chunk by cause, bytes while it runs, and where the seconds come from.

        Replicas with equally many sequences take equally long, however many there are.
        """
        rollout = Rollout(layout, work, kept, kernels=self.kernels)
        hardware, parallel = layout.hardware, layout.parallel
        given = (node.name, work, rollout.sequences, kept, layout.settings.engine)
        degrees = (parallel.tp, parallel.pp, parallel.ep, layout.settings.micro_batch)
        machine = (hardware.tensor, hardware.experts, hardware.memory, hardware.memory_bandwidth)
        key = (*given, *degrees, *machine, hardware.flops, hardware.device)
        if key not in self._samplings:
            working = memory.rollout_working(rollout)
            self._samplings[key] = rollout.parts(), working, rollout.origin
        return self._samplings[key]

    def _layout(self, node: Node, devices: Sequence[int], settings: NodePlan) -> Layout:
        place = place_of(devices)
        key = (node.name, place, settings)
        if key not in self._layouts:
            self._refuse(node, place, settings)
            self._layouts[key] = self._new_layout(node, place, settings)
        return self._layouts[key]

    def _refuse(self, node: Node, place: Sequence[int], settings: NodePlan) -> None:
        refused = self.refusal(node, place, settings)
        if refused is not None:
            message = f"`{node.name}` cannot be laid out so: {refused}"
            raise fail("RG0406", message, node.span)

    def _new_layout(self, node: Node, place: Sequence[int], settings: NodePlan) -> Layout:
        hardware = self._hardware_of(place, settings.parallel)
        model = self._models[node.model or ""]
        head = getattr(self._work(node), "head", "lm")
        return Layout(
            shape=self.shapes[model.name],
            head=model.head if head == "lm" else head,
            dtype=dtype_of(model, hardware.kind),
            hardware=hardware,
            settings=settings,
            constants=self.constants[hardware.kind],
            execution=EXECUTIONS.get(settings.engine, PLAIN),
        )

    def _hardware_of(self, devices: Sequence[int], parallel: Parallel) -> Hardware:
        degrees = (parallel.tp, parallel.pp, parallel.cp, parallel.dp, parallel.ep)
        key = (devices, degrees)
        if key not in self._hardware:
            self._hardware[key] = hardware_of(self.cluster, devices, parallel)
        return self._hardware[key]

    def _work(self, node: Node) -> DeviceWork:
        work = node.work
        if isinstance(work, Operations):
            return work
        if not isinstance(work, Generate | Forward | Train) or node.model is None:
            given = "rl.Forward(...)" if node.model else "rl.traced(Module, ...)"
            raise fail(
                "RG0509",
                f"`{node.name}` works on devices, and nothing says how much",
                node.span,
                help=(f"give it work: @rl.node(work=lambda call: {given})",),
            )
        return work

    def _training(self, node: Node) -> Train:
        work = self._work(node)
        if not isinstance(work, Train):
            raise TypeError(f"`{node.name}` is not trained")
        return work


def _sampled(
    layout: Layout, chunk: Parts, correct: Corrector, held: Parts, working: Parts, origin: Origin
) -> NodeCost:
    parts = scaled(correct("chunk", chunk), layout.settings.chunks)
    width = correct.width(("chunk",), parts, layout.constants.widths.sampling)
    where = (PROFILED, "") if correct.covers("chunk") else origin
    return _node_cost(layout, parts, held, working, width, where)


def _passed(
    layout: Layout, work: Forward | Train, correct: Corrector, held: Parts, working: Parts
) -> NodeCost:
    if isinstance(work, Train):
        kinds: tuple[Kind, ...] = ("accumulate", "optimizer_step")
        parts = training.train_parts(layout, work, correct)
    else:
        kinds = ("chunk",)
        chunk = correct("chunk", training.forward_chunk(layout, work))
        parts = scaled(chunk, layout.settings.chunks)
    width = correct.width(kinds, parts, layout.constants.widths.passes)
    where = PROFILED if correct.covers(*kinds) else "roofline"
    return _node_cost(layout, parts, held, working, width, (where, ""))


def _node_cost(
    layout: Layout, parts: Parts, held: Parts, working: Parts, width: float, origin: Origin
) -> NodeCost:
    moving = moving_s(memory.moved(held), layout.hardware, layout.constants)
    if layout.traits.paged:
        moving += layout.constants.iteration.wake_s / 2
    return NodeCost(
        seconds=sum(parts.values()),
        parts=items(parts),
        resident=items(held),
        working=items(working),
        load_s=moving,
        offload_s=moving,
        origin=origin[0],
        width=width,
        fallback=origin[1],
    )
