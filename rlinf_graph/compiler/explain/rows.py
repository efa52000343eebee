"""The table: the graph as a tree with syncs at the root, one row for each node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rlinf_graph.compiler.cost.interruption import again_seconds
from rlinf_graph.compiler.explain.report import Carried, Feedback, Memory, Row, Staleness, Times
from rlinf_graph.compiler.explain.segment import Kind
from rlinf_graph.compiler.explain.steady import KIND, Steady, total
from rlinf_graph.compiler.lower import cadence, interrupted, is_host
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.plan import Plan, SyncPlan
from rlinf_graph.ir.timeline import Event
from rlinf_graph.ir.work import Train


def table(steady: Steady) -> tuple[Row, ...]:
    """Depth first from the syncs; a node that feeds several stands below the first of them."""
    return tuple(_Table(steady).build())


def feedback(steady: Steady, rows: tuple[Row, ...]) -> tuple[Feedback, ...]:
    """The deliveries of weights."""
    numbers = {row.name: row.number for row in rows}
    lags = {lag.model: lag for lag in staleness_of(steady.graph, steady.plan)}
    made: list[Feedback] = []
    for (model, served), sync in steady.graph.deliveries().items():
        readers = steady.graph.readers(model, served)
        targets = tuple(sorted(numbers[node.name] for node in readers))
        every = sync.option("every")
        lag = Staleness(served, every - 1, every - 1, every) if served else lags[model]
        source = numbers[sync_label(sync)]
        cut = [node for node in readers if interrupted(steady.graph, steady.plan, node)]
        interrupts = tuple(sorted(numbers[node.name] for node in cut))
        made.append(
            Feedback(
                source, targets, lag.model, lag.staleness, lag.limit, lag.every, interrupts,
                sum(_again_s(steady, node) for node in cut),
            )
        )  # fmt: skip
    return tuple(made)


def _again_s(steady: Steady, node: Node) -> float:
    devices, settings = steady.plan.devices(node.name), steady.plan.settings(node.name)
    return again_seconds(steady.costs, steady.graph, node, devices, settings)


def staleness_of(graph: Graph, plan: Plan) -> tuple[Staleness, ...]:
    """How far samples lag in a plan, by model; rarer deliveries count."""
    made: list[Staleness] = []
    for model, sync in graph.syncs().items():
        every = sync.option("every")
        lag = plan.syncs.get(sync.name, SyncPlan()).staleness + every - 1
        made.append(Staleness(model, lag, sync.option("max_staleness"), every))
    return tuple(made)


def sync_label(sync: Node) -> str:
    """Such as `sync → policy`; of a named port its name, as the node has it."""
    named = sync.models[0].served
    return f"sync → {sync.name.removeprefix('sync ') if named else sync.model}"


@dataclass
class _Table:
    steady: Steady
    _rows: list[Row] = field(default_factory=list[Row])
    _numbers: dict[str, int] = field(default_factory=dict[str, int])

    def build(self) -> list[Row]:
        graph = self.steady.graph
        ends = [n for n in graph.nodes if not graph.out_of(n.name) and not n.region]
        for node in sorted(ends, key=lambda n: n.role is not Role.SYNC):
            self._visit(node, None)
        by_number = {row.number: row for row in self._rows}
        names = {number: name for name, number in self._numbers.items()}
        return [
            replace(
                row,
                takes=self._elsewhere(row, by_number),
                barrier=_waits(graph.node(names[row.number])),
            )
            for row in self._rows
        ]

    def _visit(self, node: Node, parent: int | None) -> None:
        number = len(self._rows) + 1
        self._numbers[node.name] = number
        makers = {Role.SYNC: sync_row, Role.REGION: region_row}
        made = makers.get(node.role, node_row)
        self._rows.append(made(self.steady, node, number, parent))
        graph = self.steady.graph
        for name in (*(e.source.node for e in graph.into(node.name)), *_body_of(node)):
            if name not in self._numbers:
                self._visit(graph.node(name), number)

    def _elsewhere(self, row: Row, rows: dict[int, Row]) -> tuple[int, ...]:
        node = next(name for name, number in self._numbers.items() if number == row.number)
        around = self.steady.graph.regions_of(node)
        edges = [e for e in self.steady.graph.into(node) if not e.lag]
        sources = {self._numbers[e.source.node] for e in edges if e.source.node not in around}
        return tuple(sorted(n for n in sources if rows[n].parent != row.number))


def carried(steady: Steady, rows: tuple[Row, ...]) -> tuple[Carried, ...]:
    """What is kept for the next iteration."""
    numbers = {row.name: row.number for row in rows}
    return tuple(
        Carried(numbers[edge.source.node], numbers[edge.target], edge.type)
        for edge in steady.graph.edges
        if edge.lag
    )


def _waits(node: Node) -> bool:
    """Whether a node computes on the whole batch only."""
    return node.role is Role.COMPUTE and node.unit is Unit.BATCH and bool(node.inputs)


def _body_of(node: Node) -> tuple[str, ...]:
    """The nodes that make what leaves a loop."""
    return tuple(s.node for s in (node.loop.carried, *node.loop.emitted)) if node.loop else ()


def region_row(steady: Steady, node: Node, number: int, parent: int | None) -> Row:
    """The row of a loop: from the first event of its body to the last; its nodes have the work."""
    inside = [n.name for n in steady.graph.nodes if node.name in steady.graph.regions_of(n.name)]
    events = [event for name in inside for event in steady.events_of(name) if event.kind == "run"]
    groups, loop = steady.plan.regions.get(node.name, 1), node.loop
    return Row(
        number=number,
        name=node.name,
        parent=parent,
        takes=(),
        devices="-",
        count=0,
        parallel=f"{groups} groups" if groups > 1 else "-",
        estimate=Times(
            first_s=min((e.start for e in events), default=0.0) - steady.origin,
            last_s=max((e.end for e in events), default=0.0) - steady.origin,
            busy_s=0.0,
        ),
        memory=None,
        origin="-",
        steps=loop.length if loop else None,
        expected=loop.expected if loop else None,
        groups=groups,
    )


def node_row(steady: Steady, node: Node, number: int, parent: int | None) -> Row:
    """The row of a node that computes."""
    if is_host(node):
        return _host_row(steady, node, number, parent)
    settings, devices = steady.plan.settings(node.name), steady.plan.devices(node.name)
    work = node.work
    return Row(
        number=number,
        name=node.name,
        parent=parent,
        takes=(),
        devices=steady.where(devices),
        count=len(devices),
        parallel=str(settings.parallel),
        estimate=_times(steady, node),
        memory=memory_of(steady, node.name),
        origin=(cost := steady.cost(node.name)).origin,
        fallback=cost.fallback,
        width=cost.width or None,
        every=cadence(steady.graph, node),
        engine=settings.engine,
        chunks=settings.chunks,
        micro_batch=settings.micro_batch,
        optimizer_steps=work.optimizer_steps if isinstance(work, Train) else None,
        recompute=settings.recompute,
        offloaded=not settings.resident,
    )


def sync_row(steady: Steady, node: Node, number: int, parent: int | None) -> Row:
    """The row of a delivery: its seconds are those that its readers spend waiting for it."""
    model = node.model or ""
    trainer = steady.graph.trainers()[model].name
    port = (model, node.models[0].served)
    names = [reader.name for reader in steady.graph.readers(*port)]
    devices = sorted({d for name in [trainer, *names] for d in steady.plan.devices(name)})
    plan = steady.plan.syncs.get(node.name, SyncPlan())
    busy = sum(event.seconds for name in names for event in deliveries(steady, name, port))
    method = plan.method
    source = steady.plan.devices(trainer)
    target = steady.plan.devices(names[0]) if names else source
    cost = steady.costs.sync(model, source, target, method)
    return Row(
        number=number,
        name=sync_label(node),
        parent=parent,
        takes=(),
        devices=steady.where(devices),
        count=len(devices),
        parallel=method,
        estimate=Times(None, None, busy, (("weights", busy),)),
        memory=None,
        origin=cost.origin if names else "-",
        width=(cost.width or None) if names else None,
        every=node.option("every"),
    )


def deliveries(steady: Steady, name: str, port: tuple[str, str]) -> list[Event]:
    """A node's events that take over the weights of a served port."""
    return delivered(steady.graph, steady.graph.node(name), steady.events_of(name), port)


def delivered(
    graph: Graph, node: Node, events: Sequence[Event], port: tuple[str, str]
) -> list[Event]:
    """Those of a rank's events in an iteration that take over the weights of a served port.

    `port` is the model and the port's name, empty for the main one. They come in the order of the
    node's models.
    """
    trained = graph.trainers()
    ports = [
        use.delivered for use in node.models if use.model in trained and use.port is not Port.FROZEN
    ]
    syncs = [event for event in events if event.kind == "sync"]
    return [event for event, of in zip(syncs, ports, strict=False) if of == port]


def own_events(graph: Graph, node: Node, events: Sequence[Event]) -> list[Event]:
    """A rank's events in an iteration without deliveries by a sync, which have a row."""
    synced = [
        event
        for use in node.models
        if use.delivered is not None and use.delivered in graph.deliveries()
        for event in delivered(graph, node, events, use.delivered)
    ]
    return [event for event in events if event not in synced]


def memory_of(steady: Steady, name: str) -> Memory:
    """What a device node needs on the device where others keep most."""
    devices = steady.plan.devices(name)
    worst = max(devices, key=lambda d: (steady.others(name, d), -d))
    parts = steady.needed(name)
    beside = [x.node for x in steady.plan.leaves() if worst in x.devices and x.node != name]
    rivals = [n for n in beside if steady.kept(n) and steady.shared.get(name) != n]
    more = [n for n in rivals if _before(steady, n, name)]
    capacity = min(steady.cluster.group_of(d).device.memory for d in devices)
    others = steady.others(name, worst)
    return Memory(total(parts), parts, others, capacity, first=not more)


def _before(steady: Steady, a: str, b: str) -> bool:
    """Whether `a` needs more than `b`; of equals, the one placed first."""
    order = [leaf.node for leaf in steady.plan.leaves()]
    return (-total(steady.needed(a)), order.index(a)) < (-total(steady.needed(b)), order.index(b))


def _host_row(steady: Steady, node: Node, number: int, parent: int | None) -> Row:
    cost = steady.cost(node.name)
    return Row(
        number=number,
        name=node.name,
        parent=parent,
        takes=(),
        devices=steady.host,
        count=0,
        parallel=f"× {steady.plan.host.get(node.name, 1)}",
        estimate=_times(steady, node),
        memory=None,
        origin=cost.origin,
        width=cost.width or None,
        every=cadence(steady.graph, node),
        folded=steady.cheap(node),
    )


def _times(steady: Steady, node: Node) -> Times:
    own = own_events(steady.graph, node, steady.events_of(node.name))
    worked = [event for event in own if KIND.get(event.kind, "work") == "work"]
    parts: dict[Kind, float] = {}
    for event in own:
        kind = KIND.get(event.kind, "work")
        parts[kind] = parts.get(kind, 0.0) + event.seconds
    return Times(
        first_s=min(e.start for e in worked) - steady.origin if worked else None,
        last_s=max(e.end for e in worked) - steady.origin if worked else None,
        busy_s=sum(parts.values()),
        parts=tuple(parts.items()),
    )
