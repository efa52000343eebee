"""The interpreter of one rank in a process of its own: the third, beside simulation and `local`."""

from __future__ import annotations

import math
import time
from collections.abc import MutableMapping
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, cast

import ray

from rlinf_graph.backends.edges import Rows
from rlinf_graph.backends.engines import Engines, Snapshot
from rlinf_graph.backends.environments import Registers
from rlinf_graph.backends.rank import Rank
from rlinf_graph.backends.ray.allreduce import TIMEOUT, Ranks
from rlinf_graph.backends.ray.hosted import Proxy
from rlinf_graph.backends.ray.interruption import Interrupted, News
from rlinf_graph.backends.ray.lending import Lent, Readers
from rlinf_graph.backends.ray.line import Line
from rlinf_graph.backends.ray.mailbox import Mailbox
from rlinf_graph.backends.ray.nearby import Nearby
from rlinf_graph.backends.ray.rendezvous import join, listen
from rlinf_graph.backends.ray.state import Place, refers
from rlinf_graph.backends.ray.waiting import Doing, every_instruction
from rlinf_graph.backends.ray.weights import Arriving, put_buckets
from rlinf_graph.backends.record import Sightings
from rlinf_graph.ir.interpreter import KINDS
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.position import Position
from rlinf_graph.ir.program import (
    Accumulate,
    Acquire,
    Advance,
    Await,
    Free,
    Gather,
    Instruction,
    Keep,
    Load,
    Offload,
    OptimizerStep,
    Publish,
    Recv,
    Release,
    Repartition,
    Run,
    Send,
    WorkerGroup,
    unroll,
)
from rlinf_graph.ir.timeline import Event
from rlinf_graph.nodes.metric import Metrics

if TYPE_CHECKING:
    from rlinf_graph.backends.ray.worker import Job
    from rlinf_graph.nodes.engine import Engine


class RankProcess:
    """One rank of one worker group.

    Attributes:
        at: the position of the instruction being carried out.
        kind: its class; instructions of a kind that follow one another are carried out together.
        events: what took time so far.
    """

    def __init__(
        self,
        job: Job,
        group: WorkerGroup,
        number: int,
        engines: Engines,
        environments: Registers,
        registers: MutableMapping[str, Any],
        line: Line,
        nearby: Nearby,
        start: float,
    ) -> None:
        """`start` is when the run began, by this machine's clock."""
        self.at: Position | None = None
        self.kind: type = type(None)
        self.events: list[Event] = []
        self._job, self._group, self._number = job, group, number
        self._who = (group.name, number)
        self._engines, self._start = engines, start
        self._rank = Rank(job.graph, group, number, engines, environments, registers, job.seed)
        self._line, self._nearby = line, nearby
        self._mailbox = Mailbox(self._who, line, nearby)
        self._channels = {channel.edge: channel for channel in job.program.channels}
        self._metrics, self._seen = Metrics(), Sightings()
        self._peers: Ranks | None = None
        self._took: dict[str, float] = {}
        self._read: dict[str, Readers] = {}
        self._news: dict[Await, News] = {}

    def run(self, iterations: range) -> None:
        """Carry out the list for each iteration.

        Raises:
            CompileError: the cause, when another rank has failed.
        """
        try:
            self._listen()
            self._publish_first(iterations.start)
            for iteration in iterations:
                self._metrics, self._seen = Metrics(), Sightings()
                listed = list(unroll(self._group.body, Position(iteration, self._number)))
                self._prefetch(listed)
                for kind, steps in groupby(listed, key=lambda step: type(step[0])):
                    self._steps(kind, list(steps), iterations.start)
                self._line.tell("finish", iteration, self._metrics, self._seen.sealed())
            self._line.close()
        finally:
            for news in self._news.values():
                news.close()

    def _listen(self) -> None:
        """Where the plan says so, take weights that come while the node generates."""
        engines = self._engines.of(self._group, self._number)
        for awaited in every_instruction(self._group.body):
            if isinstance(awaited, Await) and awaited.interrupt and awaited not in self._news:
                news = self._news[awaited] = News(
                    self._line.beside(f"news {awaited.model} {awaited.served}"), awaited
                )
                for param in self._engines.takers(self._group, awaited):
                    made = Interrupted(engines[param], awaited, news, self._adopt)
                    self._rank.instead[param] = cast("Engine", made)

    def _publish_first(self, version: int) -> None:
        """Who shares an engine with a node that is interrupted may want the first weights back."""
        awaits = [i for group in self._job.program.groups for i in every_instruction(group.body)]
        interrupted = {i.model for i in awaits if isinstance(i, Await) and i.interrupt}
        for publish in every_instruction(self._group.body):
            if isinstance(publish, Publish) and publish.model in interrupted:
                self._publish(publish.model, version)

    def _prefetch(self, listed: list[tuple[Any, Position]]) -> None:
        """Fetch what comes straight from a data source, before the first work and any turn."""
        early = takewhile(lambda step: not isinstance(step[0], Run | Accumulate), listed)
        self._mailbox.wait(dict(self._wanted(*step) for step in early if self._is_data(step[0])))

    def _is_data(self, instruction: Instruction) -> bool:
        """Whether an instruction waits for a node that waits for nobody."""
        if not isinstance(instruction, Recv):
            return False
        source = self._job.graph.node(self._channels[instruction.edge].source.node)
        return source.role is Role.SOURCE and not source.inputs

    def doing(self) -> Doing:
        """What the rank is in, seen from another thread."""
        return Doing(self.kind.__name__, self.at, self._line.sent)

    def _steps(self, kind: type, steps: list[tuple[Any, Position]], first: int) -> None:
        """Instructions of a kind that follow one another; batches come and go together."""
        self.at, self.kind = steps[0][1], kind
        if kind is Recv:
            self._recv(steps)
        elif kind is Send:
            self._send(steps)
        else:
            for instruction, self.at in steps:
                self._step(instruction, self.at, first)

    def _step(self, instruction: Instruction, at: Position, first: int) -> None:
        match instruction:
            case Acquire(turn=turn, position=position):
                self._acquire(turn, position)
            case Release(turn=turn):
                self._release(turn)
            case Free(edge=edge, lag=lag):
                self._mailbox.free((edge, at.moment(self._channels[edge].depth, lag)))
            case Keep() | Gather():
                self._rank.aside(instruction)
            case Repartition():
                self._rank.repartition()
            case Publish(model=model):
                self._publish(model, at.iteration + 1)
            case Await():
                self._await(instruction, at, first)
            case OptimizerStep():
                if self._rank.queued:
                    flush = Accumulate(self._group.name, 0)
                    self._timed(flush, at, lambda: self._rank.flush(self._metrics))
                weight = self._summed()
                self._timed(
                    instruction, at, lambda: self._rank.optimizer_step(weight, self._metrics)
                )
            case Run():
                self._timed(instruction, at, lambda: self._rank.run(at, self._metrics))
                self._mailbox.renew()
            case Accumulate():
                self._timed(instruction, at, lambda: self._rank.accumulate(at, self._metrics))
            case Load() | Offload():
                on = isinstance(instruction, Load)
                self._timed(instruction, at, lambda: self._rank.move(on=on))
            case Advance():
                pass
            case _:
                raise TypeError(f"{instruction} is no single instruction")

    def _acquire(self, ring: str, position: int) -> None:
        if self._nearby.knows(ring):
            asked = self._who, ring, position
            self._nearby.ask(self._who, "acquire", *asked, first=self._line.flush)
        else:
            self._line.ask("acquire", self._who, ring, position)

    def _release(self, ring: str) -> None:
        if self._nearby.knows(ring):
            self._nearby.tell("release", ring)
        else:
            self._line.tell("release", ring)

    def _recv(self, steps: list[tuple[Recv, Position]]) -> None:
        wanted = [self._wanted(*step) for step in steps]
        self._mailbox.wait(dict(wanted))
        for (recv, _at), (place, rows) in zip(steps, wanted, strict=True):
            self._rank.bound[recv.param] = self._mailbox.take(place, rows)

    def _wanted(self, recv: Recv, at: Position) -> tuple[Place, Rows]:
        """The edge and the moment that an instruction reads, and which samples of it."""
        edge = self._channels[recv.edge]
        rows = recv.select.rows(at, edge.samples, self._group.ranks, self._job.seed)
        return (recv.edge, at.moment(edge.depth, recv.lag)), rows

    def _send(self, steps: list[tuple[Send, Position]]) -> None:
        sent = [(send, at, self._channels[send.edge]) for send, at in steps]
        self._mailbox.open([(send.edge, at.moment(edge.depth)) for send, at, edge in sent])
        for send, at, edge in sent:
            value = self._rank.outgoing(send)
            output = send.output, send.field, send.gathered, send.until
            whole = bool(send.gathered)
            rows = self._group.share(at, edge.samples, self._group.ranks, whole=whole)
            place = send.edge, at.moment(edge.depth)
            if self._mailbox.put(place, rows, output, value) and not edge.depth:
                self._seen.saw(self._group.name, value)

    def _publish(self, model: str, version: int) -> None:
        """For those in other processes, rank 0 speaks for all: data-parallel ranks hold the same
        weights."""
        trainer, transport = self._rank.trainer, self._job.transport
        if self._readers(model).borrowers:
            self._nearby.tell("publish", model, version, Lent(trainer))
        if self._number == 0 and self._readers(model).others:
            if isinstance(trainer, Proxy):
                members = trainer.publish(transport)
            else:
                members = [put_buckets(trainer.shards(), transport)]
            self._line.tell("publish", model, version, members, refers=refers(members))
            self._line.flush()  # who reads it may be next on these devices

    def _await(self, awaited: Await, at: Position, first: int) -> None:
        due = self._engines.due(self._group, self._number, awaited, at.iteration, first)
        found = [(version, self._weights(awaited.model, version)) for version in due]
        if due and awaited in self._news and (newest := self._news[awaited].newest) > due[-1]:
            found = [(newest, self._weights(awaited.model, newest))]

        def adopt() -> None:
            for version, weights in found:
                self._engines.adopt(self._group, self._number, awaited, version, weights)

        self._timed(awaited, at, adopt)

    def _adopt(self, awaited: Await, version: int) -> None:
        """Take a version over that is there."""
        weights = self._weights(awaited.model, version)
        self._engines.adopt(self._group, self._number, awaited, version, weights)

    def _weights(self, model: str, version: int) -> Snapshot:
        """Wait for a version of a model's weights."""
        if self._who not in self._readers(model).borrowers:
            return Arriving(model, self._line.ask("weights", model, version))
        asked = model, version
        return self._nearby.ask(self._who, "weights", *asked, first=self._line.flush)

    def _readers(self, model: str) -> Readers:
        if model not in self._read:
            self._read[model] = Readers.of(self._job.program, model, self._engines.hosted)
        return self._read[model]

    def _summed(self) -> float:
        """Sum gradients over the ranks; the summed weight."""
        if self._group.ranks == 1 or self._engines.joined(self._group):
            return self._rank.weight
        if self._peers is None:
            self._peers = self._met()
        self._line.flush()  # the other ranks may need it to come here
        trainer = self._rank.trainer
        gradients = trainer.gradients()
        weight = self._peers.sum(gradients, self._rank.weight)
        if isinstance(trainer, Proxy):
            trainer.set_gradients(gradients)
        return weight

    def _met(self) -> Ranks:
        ranks = self._group.ranks
        if self._number == 0:
            store, address = listen(ray.util.get_node_ip_address(), ranks, TIMEOUT)
            self._line.tell("offer", self._group.name, address)
            self._line.flush()
        else:
            store = join(self._line.ask("meet", self._group.name), ranks, TIMEOUT)
        return Ranks(self._number, ranks, store)

    def _timed(self, instruction: Instruction, at: Position, work: Any) -> None:
        kind, devices = KINDS[type(instruction)], self._group.devices_of(self._number)
        self._line.flush_before(self._took.get(kind, math.inf))
        begin = time.time() - self._start
        work()
        end = time.time() - self._start
        self._took[kind] = end - begin
        self.events.append(Event(kind, self._group.name, at, devices, begin, end))
