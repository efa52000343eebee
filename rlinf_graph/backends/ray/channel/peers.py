"""Who uses a channel, and whether they live."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

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
    actor = context.get_actor_id() or ""
    kind = "driver"
    if actor:
        kind = f"actor {context.get_actor_name() or actor[:8]}"
    elif context.get_task_id():
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


def gone(peer: Peer) -> str:
    """Why a peer is known to be dead; empty while it is not."""
    if peer.machine == machine():
        return "" if _runs(peer.process) else f"process {peer.process} ended"
    if peer.actor:
        from ray._private import state

        entry = state.actors(peer.actor)
        if entry.get("State") == "DEAD":
            return "its actor died"
    return ""


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError):
        return True
