"""Run a program on Ray: start workers, watch them, take everything down again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rlinf_graph.backends.engines import Kept
from rlinf_graph.backends.ray.board import DEATH_S, Board
from rlinf_graph.backends.ray.hosted import HostedEngines, Pythons
from rlinf_graph.backends.ray.placement import Placement
from rlinf_graph.backends.ray.shipping import by_value, used_definitions
from rlinf_graph.backends.ray.waiting import Place
from rlinf_graph.backends.ray.watchdog import Seat, Watchdog
from rlinf_graph.backends.ray.weights import Transport
from rlinf_graph.backends.ray.worker import Job, Worker
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.program import Program
from rlinf_graph.ir.timeline import Event

HOST = -1
"""The number of the worker that hosts host nodes."""
POLL_S = 0.2
BREATH_S = 0.05
"""Between reports of short iterations, which come together: each costs the board milliseconds."""
GRACE_S = 1.0
"""After a failure, for the other ranks to end too: those that fail by themselves are counted."""


@dataclass(frozen=True)
class RayRun:
    """A finished run: its events, where its models were saved, and peak bytes by device."""

    events: list[Event]
    saved: Mapping[str, Path]
    memory: Mapping[int, float]


def run(
    program: Program,
    graph: Graph,
    plan: Plan,
    cluster: Cluster,
    *,
    iterations: int,
    seed: int = 0,
    initial: Mapping[str, str] | None = None,
    checkpoints: Path | None = None,
    address: str | None = None,
    pythons: Pythons | None = None,
    transport: Transport | None = None,
    placed: Callable[[Mapping[int, Seat]], None] = lambda _seats: None,
    loaded: Callable[[], None] = lambda: None,
    report: Callable[[IterationRecord], None] = lambda _record: None,
    patience_s: float | None = None,
) -> RayRun:
    """Run every rank in the process of its device.

    Args:
        program: of `graph` and `plan`.
        graph: after the passes.
        plan: checked.
        cluster: what the plan was made for.
        iterations: how many.
        seed: of every random draw.
        initial: folders to load first weights from, by model.
        checkpoints: folder to write the trained models to; on the machine that trains.
        address: of a running Ray cluster; by default one is started here, and ended.
        pythons: interpreters of engines that run in an environment of their own, by engine.
        transport: how weights travel.
        placed: called with where each device's worker lives, once all have loaded.
        loaded: called when the models are there and the first iteration begins.
        report: called with each finished iteration.
        patience_s: seconds of silence, in which no rank gets on, after which the run fails; by
            default a note on stderr says from time to time who works and who waits.

    Raises:
        CompileError: the first cause, when a node or a worker fails, does not answer, or all wait.
    """
    job = Job(program, graph, plan, cluster, used_definitions(graph), seed, dict(initial or {}),
              transport or Transport())  # fmt: skip
    with (
        session(cluster, address),
        by_value(graph),
        _Crew(job, pythons or {}, patience_s) as crew,
    ):
        placed(crew.wait())
        loaded()
        crew.start(range(iterations))
        crew.watch(iterations, report)
        events, memory = crew.events(), crew.memory()
        saved = crew.save(checkpoints) if checkpoints else {}
    return RayRun(events, saved, memory)


@contextmanager
def session(cluster: Cluster, address: str | None = None) -> Iterator[None]:
    """A Ray session: the one that is open, the one at an address, or a new one for the block."""
    if ray.is_initialized():
        yield
        return
    # Actors without GPUs keep the variables of their machine; Ray would warn about it otherwise.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        gpus = sum(g.size for g in cluster.groups if g.device.kind == "gpu")
        options |= {"num_cpus": cluster.size + 1, "num_gpus": gpus, "include_dashboard": False}
    ray.init(address=address or "local", **options)
    try:
        yield
    finally:
        ray.shutdown()


class _Crew:
    """The actors of one run."""

    def __init__(self, job: Job, pythons: Pythons, patience_s: float | None) -> None:
        self._job, self._pythons, self._patience_s = job, pythons, patience_s
        self._hosted: HostedEngines | None = None
        self._placement: Placement | None = None
        self._workers: dict[int, Any] = {}
        self._board: Any = None
        self._running: dict[Any, Place] = {}
        self._ahead: dict[int, float] = {}

    def __enter__(self) -> _Crew:
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _open(self) -> None:
        job = self._job
        self._placement = Placement(job.cluster)
        self._hosted = HostedEngines(
            job.graph, job.plan, job.cluster, job.program.groups, self._placement,
            seed=job.seed, initial=job.initial, pythons=self._pythons,
        )  # fmt: skip
        proxies = ray.put(self._hosted.proxies)
        kept = Kept.of(job.graph, job.plan)
        board = ray.remote(Board)
        ranks = sum(group.ranks for group in job.program.groups)
        waits = 2 * ranks + 16  # a question and a message of each rank, and those of this process
        self._board = board.options(num_cpus=0, max_concurrency=waits).remote(job.program, kept)
        self._dog = Watchdog(job.graph, job.program, self.places(), self._board, self._patience_s)
        address = ray.get(self._board.open.remote())
        shipped = ray.put(job)
        worker = ray.remote(Worker)
        for number, places in self.places().items():
            options: dict[str, Any] = {"max_concurrency": len(places) + 4, "num_cpus": 0}
            if number != HOST:
                options |= self._placement.options(number)
            self._workers[number] = worker.options(**options).remote(
                shipped, places, self._board, address, proxies
            )

    def places(self) -> dict[int, list[Place]]:
        """The ranks of each worker: a rank lives with its first device."""
        found: dict[int, list[Place]] = {}
        for group in self._job.program.groups:
            for rank in range(group.ranks):
                device = group.devices_of(rank)[0] if group.devices else HOST
                found.setdefault(device, []).append((group.name, rank))
        return found

    def wait(self) -> dict[int, Seat]:
        """Wait until every worker has loaded; where they live.

        Raises:
            CompileError: the cause, when one cannot load.
        """
        if self._hosted is not None:
            self._hosted.wait()
        asked = {worker.ready.remote(): number for number, worker in self._workers.items()}
        seats = {number: Seat(*told) for number, told in self._dog.each(asked, "loads")}
        self._dog.begin(self._workers, seats)
        self._ahead = {number: self._clock_ahead(number) for number in seats}
        return seats

    def start(self, iterations: range) -> None:
        """Let all ranks go; each counts seconds from the same moment."""
        start = time.time()
        for number, places in self.places().items():
            begin = start + self._ahead[number]
            for place in places:
                reference = self._workers[number].run.remote(place, iterations, begin)
                self._running[reference] = place

    def _clock_ahead(self, number: int) -> float:
        """Seconds by which a worker's clock is ahead of this one: half a round trip of error."""
        asked = time.time()
        answer = self._dog.each({self._workers[number].clock.remote(): number}, "tells the time")
        ((_number, told),) = answer
        return told - (asked + time.time()) / 2

    def watch(self, iterations: int, report: Callable[[IterationRecord], None]) -> None:
        """Report finished iterations until all ranks are done.

        Raises:
            CompileError: the first cause, when one fails.
        """
        known, pending = 0, list(self._running)
        while pending or known < iterations:
            try:
                records = self._dog.of_board("records", known, POLL_S)
            except CompileError as error:
                raise self._counted(error, pending) from error
            for record in records:
                report(record)
            known += len(records)
            breath = BREATH_S if records else 0
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=breath)
            for reference in done:
                try:
                    ray.get(reference)
                except RayError as error:
                    cause = self._cause(self._running[reference], error)
                    raise self._counted(cause, done + pending, self._running[reference]) from error
            self._dog.look({self._running[reference] for reference in pending})

    def events(self) -> list[Event]:
        """What all workers did, by the end of each event."""
        asked = {worker.events.remote(): number for number, worker in self._workers.items()}
        told = self._dog.each(asked, "hands over its events")
        return sorted((e for _n, events in told for e in events), key=lambda e: (e.end, e.group))

    def memory(self) -> dict[int, float]:
        """Most bytes that each device's worker needed, where that can be told."""
        asked = {worker.memory.remote(): number for number, worker in self._workers.items()}
        told = self._dog.each(asked, "looks at its memory")
        own = {number: peak for number, peak in told if peak is not None}
        elsewhere = self._hosted.memory() if self._hosted is not None else {}
        return {d: own.get(d, 0.0) + elsewhere.get(d, 0.0) for d in [*own, *elsewhere]}

    def save(self, folder: Path) -> dict[str, Path]:
        """Write every trained model, from its rank 0."""
        saved: dict[str, Path] = {}
        for model, node in self._job.graph.trainers().items():
            device = self._job.program.group(node.name).devices_of(0)[0]
            saved[model] = folder / model
            path = str(saved[model].resolve())
            saving = {self._workers[device].save.remote((node.name, 0), path): device}
            list(self._dog.each(saving, "saves its model"))
        return saved

    def _cause(self, place: Place, error: RayError) -> CompileError:
        """The first failure that the board was told of, else that of the worker itself."""
        told: tuple[Diagnostic, ...] = self._dog.of_board("failure")
        if told and not (isinstance(error, RayActorError) and self._is_broken_link(told)):
            return CompileError(told)
        return self._dog.gone(self._with(place), error)

    def _is_broken_link(self, cause: tuple[Diagnostic, ...]) -> bool:
        """Whether a death explains it, of which Ray may tell late."""
        return self._dog.of_board("is_broken_link", cause)

    def _with(self, place: Place) -> list[Place]:
        """The ranks of a rank's process."""
        return next(places for places in self.places().values() if place in places)

    def _counted(
        self, error: CompileError, calls: list[Any], of: Place | None = None
    ) -> CompileError:
        """The first cause, with how many ranks failed after it: by themselves, not for waiting.

        `calls` are of ranks that were not done, `of` is a rank of the process that is the cause.
        A connection that broke is not the cause if one of them dies with its process meanwhile.
        """
        broken = self._is_broken_link(error.diagnostics)
        patience = DEATH_S if broken else GRACE_S
        same = self._with(of) if of else []
        calls = [call for call in calls if self._running[call] not in same]
        ended = ray.wait(calls, num_returns=len(calls), timeout=patience)[0] if calls else []
        deaths = {call: death for call in ended if (death := _death(call)) is not None}
        if deaths and broken:
            call, death = next(iter(deaths.items()))
            place = self._running[call]
            return self._counted(self._dog.gone(self._with(place), death), calls, place)
        others: int = self._dog.of_board("failed_besides", error.diagnostics) + len(deaths)
        if not others:
            return CompileError(error.diagnostics)
        first, *rest = error.diagnostics
        ranks = "1 more rank" if others == 1 else f"{others} more ranks"
        notes = (*first.notes, f"and {ranks} failed after it")
        return CompileError([replace(first, notes=notes), *rest])

    def _close(self) -> None:
        if self._hosted is not None:
            self._hosted.close()
        for actor in [*self._workers.values(), self._board]:
            if actor is not None:
                ray.kill(actor)
        if self._placement is not None:
            self._placement.remove()


def _death(reference: Any) -> RayActorError | None:
    """The end of its process, where a call ended by that."""
    try:
        ray.get(reference)
    except RayActorError as error:
        return error
    except RayError:
        return None
    return None
