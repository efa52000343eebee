"""The actor around a worker: sets up its process, and tells of everything that its methods do."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch

from rlinf_graph.backends.cores import use_cores
from rlinf_graph.backends.ray.rendezvous import spare_port
from rlinf_graph.backends.ray.workers.errors import Failure, failure_of
from rlinf_graph.backends.ray.workers.meeting import meeting
from rlinf_graph.backends.ray.workers.payload import Frozen, freeze, thaw
from rlinf_graph.backends.ray.workers.worker import ISSUED, Place, Worker


@dataclass(frozen=True)
class Outcome:
    """What a method gave, and how long it took in its process."""

    value: Frozen
    seconds: float


@dataclass(frozen=True)
class Setup:
    """What a process has to know before the worker is made.

    Attributes:
        place: the worker's.
        env: variables of the SPMD environment.
        threads: processor cores to compute with; 0 leaves that as it is.
    """

    place: Place
    env: Mapping[str, str]
    threads: int


class Host:
    """Makes the worker, calls its methods, and stays quiet when one raises."""

    def __init__(self) -> None:
        """Nothing is set up."""
        self._worker: Worker | None = None

    def hello(self) -> tuple[str, int, int]:
        """Address of this machine, this process's id, and a port that is free there."""
        host = ray.util.get_node_ip_address()
        return host, os.getpid(), spare_port()

    @ray.method(concurrency_group="control")
    def alive(self) -> None:
        """Answered by nobody: Ray ends the call when the process dies."""
        threading.Event().wait()

    @ray.method(concurrency_group="control")
    def pulse(self) -> None:
        """Any answer says that this process runs."""

    def prepare(self, setup: Setup, shipped: Frozen, issued: float) -> Outcome | Failure:
        """Set the environment and make the worker; `shipped` is its class and arguments."""
        os.environ.update(setup.env)
        if setup.threads:
            use_cores(setup.threads)
        place = setup.place
        meeting.give(place.exchange)
        ISSUED.set(issued)
        began = time.perf_counter()
        try:
            kind, args, kwargs = thaw(shipped)
            if place.gpu and torch.cuda.is_available():
                torch.cuda.set_device(0)
            worker = kind.__new__(kind)
            worker._place = place
            worker.__init__(*args, **kwargs)
            self._worker = worker
        except (Exception, SystemExit) as error:  # whatever a user's class raises
            return self._tell(error, place, "__init__")
        return Outcome(freeze(None), time.perf_counter() - began)

    def call(self, method: str, arguments: Frozen, issued: float) -> Outcome | Failure:
        """Carry out a method; the driver issued the call at that time of its clock."""
        worker = self._worker
        assert worker is not None
        place = worker._place
        ISSUED.set(issued)
        began = time.perf_counter()
        try:
            args, kwargs = thaw(arguments)
            result = getattr(worker, method)(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            return Outcome(freeze(result), time.perf_counter() - began)
        except (Exception, SystemExit) as error:  # whatever a user's method raises
            return self._tell(error, place, method)

    def _tell(self, error: BaseException, place: Place, method: str) -> Failure:
        failure = failure_of(error, place.group, place.rank, place.host, method)
        fail: Any = place.exchange.fail
        return ray.get(fail.remote((place.group, place.rank), failure, ISSUED.get()))
