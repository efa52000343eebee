"""A process that hosts the ranks placed on one device, or the host nodes."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError

from rlinf_graph.backends.cores import use_cores
from rlinf_graph.backends.engines import Engines, Instance
from rlinf_graph.backends.environments import Registers
from rlinf_graph.backends.failure import failed
from rlinf_graph.backends.memory import MemoryMeter
from rlinf_graph.backends.ray.line import Line
from rlinf_graph.backends.ray.nearby import Nearby
from rlinf_graph.backends.ray.post import Address
from rlinf_graph.backends.ray.process import RankProcess
from rlinf_graph.backends.ray.waiting import Place, Pulse
from rlinf_graph.backends.ray.weights import Transport
from rlinf_graph.backends.ray.workers.errors import is_broken_link
from rlinf_graph.dsl.node import NodeDefinition, definitions
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.position import Position
from rlinf_graph.ir.program import Program
from rlinf_graph.ir.timeline import Event
from rlinf_graph.nodes.engine import Engine
from rlinf_graph.nodes.plugins import load_plugins


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told."""

    program: Program
    graph: Graph
    plan: Plan
    cluster: Cluster
    definitions: Mapping[str, NodeDefinition]
    seed: int
    initial: Mapping[str, str]
    transport: Transport


class Worker:
    """Runs one thread for each rank that it hosts; turns and channels order them."""

    def __init__(
        self,
        job: Job,
        places: list[Place],
        board: Any,
        address: Address,
        hosted: Mapping[Instance, Engine],
    ) -> None:
        """Load the engines of all ranks, but those that are hosted elsewhere. The board listens at
        `address`."""
        load_plugins()
        definitions.update(job.definitions)
        self._job, self._board, self._address = job, board, address
        self._nearby = Nearby(job.program, places)
        self._registers: dict[str, Any] = {}
        self._environments = Registers(job.graph, job.plan, job.seed)
        groups = [(job.program.group(name), rank) for name, rank in places]
        cores = [len(group.devices_of(rank)) for group, rank in groups if group.devices]
        use_cores(max(cores, default=1))
        kinds = {job.cluster.group_of(group.devices[0]).device.kind for group, _ in groups
                 if group.devices}  # fmt: skip
        self._memory = MemoryMeter(kinds.pop()) if kinds else None
        self._engines = Engines(
            job.graph, job.plan, job.cluster, groups, seed=job.seed, initial=job.initial,
            hosted=hosted,
        )  # fmt: skip
        self._events: list[Event] = []
        self._running: dict[Place, RankProcess] = {}
        self._lock = threading.Lock()
        gc.collect()
        gc.freeze()  # what has been imported and loaded stays

    def ready(self) -> tuple[str, int, str]:
        """Where this process lives, once it has loaded: the id of its Ray node, its own, and the
        address of the machine."""
        context = ray.get_runtime_context()
        return context.get_node_id(), os.getpid(), ray.util.get_node_ip_address()

    def clock(self) -> float:
        """This machine's time, in seconds."""
        return time.time()

    def run(self, place: Place, iterations: range, start: float) -> None:
        """Carry out a rank's list; `start` is when the run began by this worker's clock.

        Raises:
            CompileError: with the cause, which the board has been told.
        """
        group, rank = self._job.program.group(place[0]), place[1]
        process = RankProcess(
            self._job, group, rank, self._engines, self._environments, self._registers,
            Line(self._board, self._address, place), self._nearby, start,
        )  # fmt: skip
        self._running[place] = process
        try:
            process.run(iterations)
        except CompileError as error:
            self._nearby.fail(error.diagnostics)
            ray.get(self._board.fail.remote(error.diagnostics))
            raise
        except (Exception, SystemExit) as error:
            at = process.at or Position(iterations.start, rank)
            named = failed(self._job.graph.node(group.name), at, error, where=_here())
            broken = is_broken_link(error) or isinstance(error, ObjectLostError | RayActorError)
            self._nearby.fail(named.diagnostics)
            ray.get(self._board.fail.remote(named.diagnostics, broken))
            raise named from error
        finally:
            del self._running[place]
            with self._lock:
                self._events += process.events

    def pulse(self) -> Pulse:
        """What the ranks that run here are in; no answer is one, too."""
        doing = {place: process.doing() for place, process in list(self._running.items())}
        return Pulse(doing, self._nearby.heard, self._nearby.waits())

    def events(self) -> list[Event]:
        """What this worker's ranks did, with seconds since the run began."""
        return self._events

    def memory(self) -> float | None:
        """Most bytes that the device's process needed; None for the host's, or where none tells."""
        return self._memory.peak() if self._memory else None

    def save(self, place: Place, path: str) -> None:
        """Write the model of a train node's rank."""
        from pathlib import Path

        self._engines.trainer(self._job.program.group(place[0]), place[1]).save(Path(path))


def _here() -> str:
    return f"on {ray.util.get_node_ip_address()}, process {os.getpid()}"
