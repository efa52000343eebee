"""Who uses a channel, and whether they live."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import ray


@dataclass(frozen=True)
class Peer:
    """A process that puts into a channel or gets from it. `actor` is empty outside of actors."""

    id: str
    name: str
    machine: str
    process: int
    actor: str

    def __str__(self) -> str:
        return self.name


def this_peer() -> Peer:
    """A new peer in this process."""
    context = ray.get_runtime_context()
    works = context.worker.mode == ray.WORKER_MODE
    actor = (context.get_actor_id() or "") if works else ""
    kind = "driver"
    if actor:
        kind = f"actor {context.get_actor_name() or actor[:8]}"
    elif works:
        kind = f"task {context.get_task_name() or ''}".strip()
    host = os.uname().nodename
    name = f"{kind}, process {os.getpid()} on {host}"
    return Peer(uuid.uuid4().hex[:12], name, machine(), os.getpid(), actor)


def machine() -> str:
    """The kernel and the process namespace: process ids mean the same where this is the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ray.get_runtime_context().get_node_id()


class Fate(Enum):
    """What has become of a peer."""

    ALIVE = "alive"
    DONE = "done"
    DEAD = "dead"


def fate(peer: Peer) -> Fate:
    """Whether a peer's process runs; an actor that nobody refers to any more is done, not dead."""
    if peer.machine == machine() and _runs(peer.process):
        return Fate.ALIVE
    if not peer.actor:
        return Fate.DEAD if peer.machine == machine() else Fate.ALIVE
    from ray._private import state
    from ray.core.generated import common_pb2

    entry = state.actors(peer.actor)
    if entry.get("State") != "DEAD":
        # Ray has not heard yet; a restarted actor is another process.
        return Fate.DEAD if entry.get("Pid", peer.process) != peer.process else Fate.ALIVE
    context: Any = vars(common_pb2)["ActorDiedErrorContext"]
    out_of_scope = context.Reason.Value("OUT_OF_SCOPE")
    reason = entry["DeathCause"].actor_died_error_context.reason
    return Fate.DONE if reason == out_of_scope else Fate.DEAD


def is_stopped(peer: Peer) -> bool:
    """Whether a peer's process is there and may not run; seen from its own machine only."""
    return peer.machine == machine() and _state(peer.process) in ("T", "t")


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(process) not in ("Z", "X")


def _state(process: int) -> str:
    """The letter of proc(5); empty where there is no such file."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return ""
    return status.rpartition(")")[2].split()[0]
