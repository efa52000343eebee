"""What explain says, as numbers: seconds, bytes and counts. Renderers choose units and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlinf_graph.compiler.cost.uncertainty import interval
from rlinf_graph.compiler.explain.measured import Measured, Run
from rlinf_graph.compiler.explain.segment import Kind, Segment

FORMAT = 1

Limit = Literal["devices", "host", "latency", "mixed"]


@dataclass(frozen=True)
class Staleness:
    """How far the samples of a model lag in this plan, and how far they may."""

    model: str
    staleness: int
    limit: int
    every: int


@dataclass(frozen=True)
class Stream:
    """The parts in which an iteration flows from node to node."""

    chunks: int
    prompts: int


@dataclass(frozen=True)
class Times:
    """One iteration of one node.

    `first_s` and `last_s` say when the node begins to work for the iteration and when it is done
    with it, counted from when the first device begins. They exceed the seconds per iteration where
    iterations overlap. Switches and deliveries of weights do not count as beginning.

    Attributes:
        first_s, last_s: seconds; negative for a host node that works ahead; None for deliveries.
        busy_s: seconds of work, switches and deliveries; of what runs in every k-th iteration, a
            k-th.
        parts: `busy_s` by kind.
    """

    first_s: float | None
    last_s: float | None
    busy_s: float
    parts: tuple[tuple[Kind, float], ...] = ()

    def part(self, kind: Kind) -> float:
        """Seconds of one kind."""
        return dict(self.parts).get(kind, 0.0)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device of a node.

    Attributes:
        needed: by the node while it runs, with what it keeps.
        parts: `needed` by what it holds.
        others: kept there by other nodes meanwhile.
        capacity: of the device.
        first: whether no other node that keeps something there needs more.
    """

    needed: float
    parts: tuple[tuple[str, float], ...]
    others: float
    capacity: float
    first: bool


@dataclass(frozen=True)
class Row:
    """A node in the table.

    Attributes:
        number: from 1, in the order of the table.
        parent: number of the row that takes what this one makes; None at the root.
        takes: numbers of rows above or below, shown elsewhere, from which it takes more.
        devices: such as `gpu 0-7`.
        count: how many those are; 0 on the host.
        parallel: such as `tp 2 × 4`; processes of a host node; the method of a sync.
        every: runs in every that many iterations.
        engine: of a device node.
        chunks, micro_batch, optimizer_steps, recompute, offloaded: of its settings.
        folded: a host node of less than a hundredth of the iteration.
        origin: where its seconds come from.
        width: half the width of their 80 % interval, as a logarithm; None where nobody can tell.
        steps, expected: of a loop: at most, and on average.
        groups: of a loop's samples, which are in different steps at the same time.
        barrier: whether it waits for the whole batch.
        fallback: why measured kernels that were asked for have no figure.
        measured: what it took in a run; None before one.
    """

    number: int
    name: str
    parent: int | None
    takes: tuple[int, ...]
    devices: str
    count: int
    parallel: str
    estimate: Times
    memory: Memory | None
    origin: str
    width: float | None = None
    every: int = 1
    engine: str = ""
    chunks: int = 1
    micro_batch: int | None = None
    optimizer_steps: int | None = None
    recompute: bool | Literal["selective"] = False
    offloaded: bool = False
    folded: bool = False
    steps: int | None = None
    expected: float | None = None
    groups: int = 1
    barrier: bool = False
    fallback: str = ""
    measured: Measured | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the 80 % interval of its busy seconds."""
        return None if self.width is None else interval(self.estimate.busy_s, self.width)


@dataclass(frozen=True)
class Feedback:
    """Weights on their way to the next iteration: row numbers.

    `interrupts` are those of `targets` that take them in the middle of generation, and `again_s`
    the seconds of an iteration in which these read again what they have said.
    """

    source: int
    targets: tuple[int, ...]
    model: str
    staleness: int
    limit: int
    every: int
    interrupts: tuple[int, ...] = ()
    again_s: float = 0.0


@dataclass(frozen=True)
class Carried:
    """A batch that the next iteration begins with: row numbers, and the batch's type."""

    source: int
    target: int
    type: str


@dataclass(frozen=True)
class Lane:
    """Devices that do the same all the time, or a host node, in one steady-state iteration.

    Attributes:
        where: such as `gpu 0-7`.
        count: devices; 0 for a host node.
        busy_s: seconds in which something runs.
        peak: bytes of each device when most is needed; None for a host node.
        capacity: bytes of each device.
        usable: bytes of each device that may be planned with.
        segments: in order.
    """

    where: str
    count: int
    busy_s: float
    segments: tuple[Segment, ...]
    peak: float | None = None
    capacity: float | None = None
    usable: float | None = None

    def by_node(self) -> list[tuple[str, float]]:
        """Seconds by node, all kinds together, longest first."""
        totals: dict[str, float] = {}
        for segment in self.segments:
            totals[segment.node] = totals.get(segment.node, 0.0) + segment.end_s - segment.start_s
        return sorted(totals.items(), key=lambda item: (-item[1], item[0]))


@dataclass(frozen=True)
class Resource:
    """A lane as a limit: what it does and for how long."""

    where: str
    busy_s: float
    nodes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Bottleneck:
    """What decides the seconds per iteration.

    Attributes:
        kind: `devices` or `host` that are busy all the time; `latency`: the chain from sampling to
            training, of which `staleness + 1` iterations can be under way at once; `mixed`:
            neither alone.
        busiest, next: lanes by seconds.
        chain: nodes from who samples to who trains, on the way that is latest.
        chain_s: seconds from the chain's start to the new weights, in one iteration.
        staleness: of this plan.
        waiting: share of their time that the devices of the plan wait.
    """

    kind: Limit
    busiest: Resource
    next: Resource | None
    chain: tuple[str, ...]
    chain_s: float
    staleness: int
    waiting: float


@dataclass(frozen=True)
class Assumption:
    """A figure that nobody declared or measured.

    Attributes:
        node: whose.
        quantity: `response tokens`, `tokens a sample`, `host seconds a sample` or
            `launches not captured`, of at most `limit` in a call.
        mean, longest: the figure.
        limit: the most it can be, where there is such a thing.
        origin: where it comes from.
    """

    node: str
    quantity: str
    mean: float
    longest: float
    limit: float | None
    origin: str


@dataclass(frozen=True)
class Rejected:
    """Another kind of plan.

    Attributes:
        mode, staleness: the kind; the staleness is None for what fits at none.
        layout: device counts, such as `8+8`.
        seconds: of the best plan of the kind that was simulated; None where nothing fits.
        bound: seconds that no schedule of that plan can beat.
        bottleneck: of that plan.
        reason: why nothing fits.
        width: of the 80 % interval of the ratio of its seconds to those of the chosen plan, as in
            `Row`.
        tie: whether the two cannot be told apart.
    """

    mode: str
    staleness: int | None
    layout: str
    seconds: float | None = None
    bound: float | None = None
    bottleneck: Bottleneck | None = None
    reason: str = ""
    width: float | None = None
    tie: bool = False


@dataclass(frozen=True)
class Margin:
    """Within which factors of its seconds a node leaves the plan within 2 % of the best one.

    None where a fourth, or four times as much, changes nothing.
    """

    node: str
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Given:
    """What was pinned, as it is written by name, and seconds of the best plan without any of it."""

    pins: tuple[tuple[str, str], ...]
    unpinned_s: float | None


@dataclass(frozen=True)
class SearchSummary:
    """How the plan was found.

    Attributes:
        plans: whose closed form was worked out; a bound spoke against all others.
        simulated: of these, event by event.
        proved: whether none can be better.
        gap: by which part a better one could be better at most.
        seconds: of the search.
    """

    plans: int
    simulated: int
    proved: bool
    gap: float
    seconds: float


@dataclass(frozen=True)
class Report:
    """What explain says of a compiled pipeline.

    Attributes:
        seconds: of an iteration, when things have settled.
        width: half the width of their 80 % interval, as a logarithm.
        samples: that an iteration trains on; all that flow where nothing is trained.
        window_s: seconds of the iteration that `lanes` show; other than `seconds` only where
            iterations differ.
        search: None for a plan that was given.
        margins: by how much costs may be off.
        given: what was pinned; None where nothing was.
        engine_reasons: why each device node has its engine: `named`, `pinned`, `best of`
            others; empty where there is no other, or the plan was given.
        profile: the file that rows from `profiled` go by, and its date; empty where there is none.
        run: what was measured; None before a run.
    """

    pipeline: str
    cluster: str
    mode: str
    layout: str
    seconds: float
    width: float
    samples: int
    staleness: tuple[Staleness, ...]
    stream: Stream | None
    device_kind: str
    rows: tuple[Row, ...]
    feedback: tuple[Feedback, ...]
    carried: tuple[Carried, ...]
    window_s: float
    lanes: tuple[Lane, ...]
    bottleneck: Bottleneck
    assumptions: tuple[Assumption, ...]
    rejected: tuple[Rejected, ...] = ()
    search: SearchSummary | None = None
    margins: tuple[Margin, ...] = ()
    given: Given | None = None
    profile: str = ""
    engine_reasons: tuple[tuple[str, str], ...] = ()
    run: Run | None = None

    @property
    def samples_per_s(self) -> float:
        """Samples trained on in a second."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 80 % interval of `seconds`."""
        return interval(self.seconds, self.width)
