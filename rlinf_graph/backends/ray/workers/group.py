"""Processes with a worker each, called as one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from rlinf_graph.backends.ray.shipping import whole
from rlinf_graph.backends.ray.workers.dispatch import Collect, Dispatch, Spread, rule_of
from rlinf_graph.backends.ray.workers.errors import WorkerError, death_of
from rlinf_graph.backends.ray.workers.handle import Handle
from rlinf_graph.backends.ray.workers.host import Host, Setup
from rlinf_graph.backends.ray.workers.meeting import meeting
from rlinf_graph.backends.ray.workers.payload import INLINE_BYTES, Frozen, freeze
from rlinf_graph.backends.ray.workers.reservation import Seat, Seats
from rlinf_graph.backends.ray.workers.worker import Place, Worker

START_S = 120.0
SILENCE_S = 120.0
"""Without an answer, even to whether it is there, for a process to be taken for stuck."""
LEAVE_S = 10.0


class WorkerGroup:
    """A group of processes; a context manager that ends them.

    Public methods of the worker's class are methods of the group: a call starts on all ranks at
    once and gives a `Handle`. Arguments and results travel as `dispatched` says of the method.
    """

    def __init__(self, worker: type[Worker], name: str, placement: Seats) -> None:
        """Use `launch`: this starts nothing."""
        self._worker, self._name, self._placement = worker, name, placement
        self._size = len(placement.seats)
        self._exchange: Any = None
        self._hosts: list[Any] = []
        self._addresses: list[str] = []
        self._processes: list[int] = []

    @classmethod
    def launch(
        cls, worker: type[Worker], args: Sequence[Any], placement: Seats, *,
        kwargs: Mapping[str, Any] | None = None, name: str | None = None, concurrency: int = 1,
        timeout: float = START_S, silence: float = SILENCE_S,
    ) -> WorkerGroup:  # fmt: skip
        """Start a process on each seat, and make a worker in each.

        Args:
            worker: derived from `Worker`; needs not be importable on the other machines.
            args: positional arguments of its `__init__`, the same for all ranks.
            placement: from `Reservation.on` or `without_devices`; rank r takes seat r.
            kwargs: keyword arguments of its `__init__`.
            name: by which others send to it; by default that of the class.
            concurrency: calls that a process carries out at the same time, each in a thread.
            timeout: seconds for all processes to be ready.
            silence: seconds after which a process that answers nothing at all, since it is stopped
                or C code holds the interpreter's lock, is an error for whoever waits for it.

        Raises:
            WorkerError: a process or a worker's `__init__` failed; nothing is left of the group.
            ValueError: a group of that name is open.
            TypeError: `worker` does not fit.
            TimeoutError: Ray did not start the processes, or `__init__` takes longer.
        """
        _check(worker)
        group = cls(worker, name or worker.__name__, placement)
        try:
            group._start(args, kwargs or {}, concurrency, timeout, silence)
        except BaseException:
            group.close()
            raise
        return group

    @property
    def name(self) -> str:
        """By which others send to it."""
        return self._name

    @property
    def size(self) -> int:
        """How many ranks it has."""
        return self._size

    @property
    def hosts(self) -> tuple[str, ...]:
        """The address of each rank's machine."""
        return tuple(self._addresses)

    @property
    def processes(self) -> tuple[int, ...]:
        """The process id of each rank, on its machine."""
        return tuple(self._processes)

    def on(
        self, ranks: int | Sequence[int] | None = None, *, spread: Spread | None = None,
        collect: Collect | None = None,
    ) -> Some:  # fmt: skip
        """Some ranks, all by default; methods are called on them alone, in the order of ranks.

        Args:
            ranks: one or several.
            spread: instead of what the method says; see `Dispatch`.
            collect: likewise.

        Raises:
            IndexError: for a rank that the group does not have.
            ValueError: for no rank, or one that is given twice.
        """
        chosen = range(self.size) if ranks is None else [ranks] if isinstance(ranks, int) else ranks
        if not len(chosen) or len(set(chosen)) < len(chosen):
            raise ValueError(f"ranks {tuple(chosen)}: at least one, and each of them once")
        if not all(0 <= rank < self.size for rank in chosen):
            raise IndexError(f"ranks {tuple(chosen)} of a group with {self.size}")
        return Some(self, sorted(chosen), spread, collect)

    def __getattr__(self, name: str) -> Callable[..., Handle]:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.on(), name)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy for another process, to call methods on: who launched the group closes it."""
        return {**self.__dict__, "_placement": None}

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, whatever they do; who waits for the group is told."""
        exchange, self._exchange = self._exchange, None
        hosts, self._hosts = self._hosts, []
        if not ray.is_initialized():
            return
        try:
            if exchange is not None:
                ray.get(exchange.leave.remote(self._name, time.time()), timeout=LEAVE_S)
        except RayError:  # the exchange is gone or stuck, and with it whoever could wait there
            pass
        finally:
            for host in hosts:
                ray.kill(host)
            if exchange is not None:
                meeting.release(exchange)

    def _start(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], concurrency: int, timeout: float,
        silence: float,
    ) -> None:  # fmt: skip
        reservation, seats = self._placement.reservation, self._placement.seats
        exchange = meeting.acquire()
        if not ray.get(exchange.claim.remote(self._name)):
            meeting.release(exchange)
            raise ValueError(f"a worker group `{self._name}` is open already")
        self._exchange = exchange
        remote: Any = ray.remote
        made = remote(concurrency_groups={"control": 2})(Host)
        for seat in seats:
            options = reservation.options(seat) | {"max_concurrency": concurrency}
            self._hosts.append(made.options(**options).remote())
        told = self._hello(timeout)
        self._addresses = [host for host, _, _ in told]
        self._processes = [process for _, process, _ in told]
        places = list(zip(self._addresses, self._processes, strict=True))
        ray.get(self._exchange.join.remote(self._name, self._hosts, places, silence))
        with self._whole():
            shipped = self._shared(freeze((self._worker, tuple(args), dict(kwargs))))
        issued = time.time()
        asked = {
            rank: host.prepare.remote(self._setup(rank, seats[rank], told[0]), shipped, issued)
            for rank, host in enumerate(self._hosts)
        }
        self._handle("__init__", issued, asked, Dispatch()).wait(timeout)

    def _hello(self, timeout: float) -> list[tuple[str, int, int]]:
        """Where each process is; the first answer of each."""
        asked = [host.hello.remote() for host in self._hosts]
        _ready, late = ray.wait(asked, num_returns=len(asked), timeout=timeout)
        if late:
            ranks = ", ".join(str(asked.index(reference)) for reference in late)
            raise TimeoutError(f"Ray did not start rank {ranks} of `{self._name}` in {timeout:g} s")
        told: list[tuple[str, int, int]] = []
        for rank, reference in enumerate(asked):
            try:
                told.append(ray.get(reference))
            except RayError as error:
                raise WorkerError(death_of(error, self._name, rank, "its machine")) from error
        return told

    def _setup(self, rank: int, seat: Seat, first: tuple[str, int, int]) -> Setup:
        gpu = any(self._placement.reservation.is_gpu(device) for device in seat.devices)
        host = self._addresses[rank]
        place = Place(
            self._name, rank, self.size, seat.local_rank, host, seat.devices, gpu, self._exchange
        )
        address, _, port = first
        visible = ",".join(seat.visible)
        env = {
            "RANK": rank, "WORLD_SIZE": self.size, "LOCAL_RANK": seat.local_rank,
            "LOCAL_WORLD_SIZE": seat.local_size, "MASTER_ADDR": address, "MASTER_PORT": port,
            "VISIBLE_DEVICES": visible, "CUDA_VISIBLE_DEVICES": visible if gpu else "",
        }  # fmt: skip
        threads = 0 if gpu else max(1, len(seat.devices) // seat.share)
        return Setup(place, {name: str(value) for name, value in env.items()}, threads)

    def _call(
        self, ranks: Sequence[int], method: str, rule: Dispatch, args: Any, kwargs: Any
    ) -> Handle:
        if not self._hosts:
            raise RuntimeError(f"worker group `{self._name}` is closed")
        if rule.spread == "rank0":
            ranks = ranks[:1]
        with self._whole():
            parts = [freeze(part) for part in rule.arguments(args, kwargs, len(ranks))]
        if len(parts) < len(ranks):
            parts = [self._shared(parts[0])] * len(ranks)
        issued = time.time()
        asked = {
            rank: self._hosts[rank].call.remote(method, part, issued)
            for rank, part in zip(ranks, parts, strict=True)
        }
        return self._handle(method, issued, asked, rule)

    def _handle(
        self, method: str, issued: float, asked: Mapping[int, Any], rule: Dispatch
    ) -> Handle:
        hosts = dict(enumerate(self._addresses))
        return Handle(self._name, hosts, method, issued, asked, rule.result, self._exchange)

    def _shared(self, frozen: Frozen) -> Any:
        """What is large is stored once for all ranks."""
        return frozen if frozen.nbytes <= INLINE_BYTES else ray.put(frozen)

    def _whole(self) -> AbstractContextManager[None]:
        """Inside, classes and functions of the user's modules are pickled whole."""
        names = {kind.__module__ for kind in self._worker.__mro__}
        return whole(sys.modules[name] for name in names if name in sys.modules)


class Some:
    """Some ranks of a group, to call methods on."""

    def __init__(
        self, group: WorkerGroup, ranks: Sequence[int], spread: Spread | None,
        collect: Collect | None,
    ) -> None:  # fmt: skip
        """Use `WorkerGroup.on`."""
        self._group, self._ranks = group, ranks
        chosen = {"spread": spread, "collect": collect}
        self._chosen: dict[str, Any] = {k: v for k, v in chosen.items() if v is not None}

    def __getattr__(self, name: str) -> Callable[..., Handle]:
        worker = self._group._worker
        method = getattr(worker, name, None)
        if name.startswith("_") or not callable(method) or hasattr(Worker, name):
            raise AttributeError(f"{worker.__name__} has no public method `{name}`")
        said = rule_of(method)
        rule = replace(said, **self._chosen)

        def call(*args: Any, **kwargs: Any) -> Handle:
            return self._group._call(self._ranks, name, rule, args, kwargs)

        return call


def _check(worker: type[Worker]) -> None:
    if not (isinstance(worker, type) and issubclass(worker, Worker)):
        raise TypeError(f"{worker!r} does not derive from Worker")
    taken = sorted(n for n in vars(WorkerGroup) if not n.startswith("_") and hasattr(worker, n))
    if taken:
        raise TypeError(
            f"{worker.__name__}: a group has `{', '.join(taken)}` of its own; rename it"
        )
