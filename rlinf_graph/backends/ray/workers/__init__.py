"""Workers written by hand: processes with devices, called as a group, that talk to one another."""

from rlinf_graph.backends.ray.workers.dispatch import Dispatch, dispatched
from rlinf_graph.backends.ray.workers.errors import (
    BrokenLinkError,
    Failure,
    MismatchError,
    WorkerError,
)
from rlinf_graph.backends.ray.workers.group import WorkerGroup
from rlinf_graph.backends.ray.workers.handle import Durations, Handle
from rlinf_graph.backends.ray.workers.reservation import NodeSettings, Reservation
from rlinf_graph.backends.ray.workers.transfer import Transfer
from rlinf_graph.backends.ray.workers.worker import Worker

__all__ = [
    "BrokenLinkError",
    "Dispatch",
    "Durations",
    "Failure",
    "Handle",
    "MismatchError",
    "NodeSettings",
    "Reservation",
    "Transfer",
    "Worker",
    "WorkerError",
    "WorkerGroup",
    "dispatched",
]
