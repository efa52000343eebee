"""What users derive their workers from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from rlinf_graph.backends.ray.workers.collective import ALLOWED, Links
from rlinf_graph.backends.ray.workers.matching import Problem, Receipt, Wanted
from rlinf_graph.backends.ray.workers.payload import About, Envelope, describe, seal
from rlinf_graph.backends.ray.workers.transfer import Transfer, raise_problem
from rlinf_graph.backends.ray.workers.waits import Peer

ISSUED: ContextVar[float] = ContextVar("issued", default=float("inf"))
"""When the driver issued the call that runs here, by its clock; later than all in other threads."""
TIMEOUT_S = 300.0
"""How long a transfer or a collective waits for the other ranks unless told otherwise."""
_COUNTING = threading.Lock()
Targets = Sequence[str | tuple[str, Sequence[int]]]
"""Worker groups, each with all ranks or with some."""


@dataclass
class Place:
    """What a worker's process knows of itself."""

    group: str
    rank: int
    world_size: int
    local_rank: int
    host: str
    devices: tuple[int, ...]
    gpu: bool
    exchange: Any
    links: Links = field(default_factory=Links)
    counts: dict[tuple[str, Peer], int] = field(default_factory=dict[tuple[str, Peer], int])

    def next(self, what: str, peer: Peer) -> int:
        """How many transfers with a rank began before this one, in this direction."""
        with _COUNTING:
            self.counts[what, peer] = self.counts.get((what, peer), -1) + 1
            return self.counts[what, peer]


class Worker:
    """One process of a worker group.

    Derive from it; `WorkerGroup.launch` makes one object in each process. Public methods can be
    called on the group. All that is here can be used from `__init__` on, without calling this
    class's own. Methods run one after another in a process unless the group is launched with a
    higher `concurrency`; `async def` methods run to their end in an event loop of their own.
    """

    _place: Place

    @property
    def group_name(self) -> str:
        """The worker group's name."""
        return self._place.group

    @property
    def rank(self) -> int:
        """From 0, in the group."""
        return self._place.rank

    @property
    def world_size(self) -> int:
        """Processes of the group."""
        return self._place.world_size

    @property
    def local_rank(self) -> int:
        """From 0, among the group's processes on this machine."""
        return self._place.local_rank

    @property
    def host(self) -> str:
        """Address of the machine."""
        return self._place.host

    @property
    def devices(self) -> tuple[int, ...]:
        """Numbers of this process's devices in the cluster; none when it sees no device."""
        return self._place.devices

    @property
    def device(self) -> torch.device:
        """Where tensors belong: the first GPU that this process sees, else the processor."""
        return torch.device("cuda", 0) if self._place.gpu else torch.device("cpu")

    def send(
        self, value: Any, group: str, rank: int, *, tag: int | str | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        """Send a value to a rank of a worker group; returns when it has it.

        Args:
            value: a tensor, a batch, or anything that can be pickled. Tensors on a GPU travel
                over host memory.
            group: name of the receiver's group, which may be launched later.
            rank: of the receiver.
            tag: the receiver has to name the same one.
            timeout: seconds.

        Raises:
            MismatchError: the receiver expects something else, or there is no such rank.
            TimeoutError: the receiver did not ask for it; says who waits for whom.
            ConnectionError: the receiver's group was closed.
            WorkerError: the receiver failed; with the first cause.
            TypeError: it cannot be pickled.
        """
        self.isend(value, group, rank, tag=tag, timeout=timeout).wait()

    def isend(
        self, value: Any, group: str, rank: int, *, tag: int | str | None = None,
        timeout: float = TIMEOUT_S,
    ) -> Transfer:  # fmt: skip
        """Begin a send; the value is taken as it is now. `send` says more."""
        return self._send(value, [(group, rank)], tag, timeout)

    def recv(
        self, group: str, rank: int, *, tag: int | str | None = None, kind: type | None = None,
        into: torch.Tensor | None = None, timeout: float = TIMEOUT_S,
    ) -> Any:  # fmt: skip
        """The next value that a rank of a worker group has sent to this one, in order.

        Args:
            group: name of the sender's group, which may be launched later.
            rank: of the sender.
            tag: that the sender has to have named.
            kind: class of the value, exactly.
            into: a tensor to be filled, of the shape and dtype that are sent; it is the result.
            timeout: seconds.

        Raises:
            MismatchError: what is sent does not fit; the sender gets the same error.
            TimeoutError: nothing was sent; says who waits for whom.
            ConnectionError: the sender's group was closed.
            WorkerError: the sender failed; with the first cause.
        """
        return self.irecv(group, rank, tag=tag, kind=kind, into=into, timeout=timeout).wait()

    def irecv(
        self, group: str, rank: int, *, tag: int | str | None = None, kind: type | None = None,
        into: torch.Tensor | None = None, timeout: float = TIMEOUT_S,
    ) -> Transfer:  # fmt: skip
        """Begin a receive; `into` is filled when the transfer is waited for."""
        _require_tag(tag)
        name = kind.__name__ if kind is not None else None
        wanted = Wanted(tag, name)
        if into is not None:
            about = describe(into)
            wanted = Wanted(tag, about.kind, about.shape, about.dtype)
        exchange = self._place.exchange

        def take(receipt: Receipt) -> Any:
            value = receipt.envelope.open()
            if receipt.envelope.reference:
                exchange.taken.remote(receipt.number)
            return value if into is None else into.detach().copy_(value)

        peer = group, rank
        number = self._place.next("receive", peer)
        asked = exchange.receive.remote(self._peer, peer, wanted, number, ISSUED.get(), timeout)
        return Transfer([asked], take)

    def broadcast(
        self, value: Any, to: Targets, *, tag: int | str | None = None, timeout: float = TIMEOUT_S
    ) -> None:
        """Send one value to many ranks, which `recv` it; returns when all have it.

        A large value lies once in the shared memory of each machine.

        Args:
            value: as for `send`.
            to: names of worker groups, or names with ranks; this rank itself is left out.
            tag: as for `send`.
            timeout: seconds.

        Raises:
            Exception: what `send` lists, of the first receiver with an error.
        """
        peers: list[Peer] = []
        for target in to:
            name, ranks = (target, None) if isinstance(target, str) else target
            if ranks is None:
                size: Any = ray.get(self._place.exchange.size.remote(name, timeout))
                if isinstance(size, Problem):
                    raise_problem(size)
                ranks = range(size)
            peers += [(name, rank) for rank in ranks if (name, rank) != self._peer]
        if peers:
            self._send(value, peers, tag, timeout).wait()

    def barrier(self, *, timeout: float = TIMEOUT_S) -> None:
        """Wait until all ranks of the group are here; `all_gather` lists the errors."""
        self._meet("barrier", None, timeout)

    def all_gather(self, value: Any, *, timeout: float = TIMEOUT_S) -> list[Any]:
        """What all ranks of the group have brought, in their order.

        Raises:
            MismatchError: the ranks are not in the same collective.
            TimeoutError: a rank did not come; says which.
            WorkerError: a rank of the group failed; with the first cause.
        """
        return self._meet("all_gather", value, timeout)

    def all_reduce(
        self, tensor: torch.Tensor, op: str = "sum", *, timeout: float = TIMEOUT_S
    ) -> torch.Tensor:
        """Replace a tensor by the sum (`min`, `max`, `product`) over the group's ranks, in place.

        Over gloo for tensors in host memory. Tensors on GPUs go over NCCL, which no test of this
        repository has run: those run on processors.

        Raises:
            ValueError: no such operation.
            MismatchError: the ranks bring different shapes, dtypes, devices or operations.
            BrokenLinkError: a rank went away in the middle.
            Exception: what `all_gather` lists.
        """
        if op not in ALLOWED:
            raise ValueError(f"`{op}` is none of {', '.join(ALLOWED)}")
        links, kind = self._place.links, tensor.device.type
        what = f"all_reduce {op} {kind}"
        ready = self._meet(what, links.ready(kind), timeout, same=describe(tensor))
        if not all(ready):  # at some ranks it may have broken off
            offered = links.listen(self.host, self.world_size, timeout) if self.rank == 0 else ""
            address = self._meet(f"connection of {what}", offered, timeout)[0]
            links.connect(kind, self.rank, self.world_size, address, timeout)
        links.reduce(tensor, op, timeout)
        return tensor

    def _meet(self, what: str, value: Any, timeout: float, same: About | None = None) -> list[Any]:
        envelope = seal(value)
        brought = self._ask_all(what, same, envelope, timeout)
        values = [one.open() for one in brought]
        if any(one.reference for one in brought):  # nobody may go before all have fetched it
            self._ask_all(f"end of {what}", None, seal(None), timeout)
        return values

    def _ask_all(
        self, what: str, same: About | None, envelope: Envelope, timeout: float
    ) -> list[Envelope]:
        meet = self._place.exchange.meet
        answer = ray.get(meet.remote(self._peer, what, same, envelope, ISSUED.get(), timeout))
        if isinstance(answer, Problem):
            raise_problem(answer)
        return answer

    @property
    def _peer(self) -> Peer:
        return self._place.group, self._place.rank

    def _send(
        self, value: Any, peers: list[Peer], tag: int | str | None, timeout: float
    ) -> Transfer:
        _require_tag(tag)
        envelope = seal(value)
        send, issued = self._place.exchange.send, ISSUED.get()
        asked = [
            send.remote(
                self._peer, peer, tag, envelope, self._place.next("send", peer), issued, timeout
            )
            for peer in peers
        ]
        return Transfer(asked, lambda _answer: None)


def _require_tag(tag: Any) -> None:
    """Before a message gets its number: those after one that never leaves would wait for it."""
    if not isinstance(tag, int | str | None):
        raise TypeError(f"tag {tag!r} is neither a number nor a text")
