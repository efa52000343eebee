"""Shared memory among a replica's processes: named for the replica, and gone when they are killed.

vLLM names the segments of its CPU collectives by ranks alone where it does not start the processes
itself: two replicas on a machine would want the same ones, and so would the next run after one that
was killed. Names are needed only until all processes have opened them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from rlinf_graph.engines.vllm.api import CPU_COMMUNICATOR, groups_by_name

SEGMENTS = Path("/dev/shm")
_Collectives: Any = CPU_COMMUNICATOR._CPUSHMDistributed


class _NamedForReplica(_Collectives):
    """vLLM's collectives on a CPU, of processes whose first one has MASTER_PORT of its own."""

    @staticmethod
    def make_group_name(communicator: Any) -> str:
        os.environ["VLLM_DIST_IDENT"] = f"rlinf-graph-{os.environ['MASTER_PORT']}"
        return _Collectives.make_group_name(communicator)

    def _init_cpu_shm(self) -> int:
        handle = super()._init_cpu_shm()
        with contextlib.suppress(FileNotFoundError):
            (SEGMENTS / f"{self.group_name}_{self.communicator.rank}").unlink()
        return handle


def name_for_replica() -> None:
    """From now on vLLM's collectives on a CPU use segments of this replica."""
    CPU_COMMUNICATOR._CPUSHMDistributed = _NamedForReplica


def forget_names() -> None:
    """Take the names off the queues by which a group's first process tells the others.

    All have opened them; the memory goes with the last process.
    """
    for found in groups_by_name.values():
        group = found()
        queue = getattr(group, "mq_broadcaster", None)
        buffer = getattr(queue, "buffer", None)
        if buffer is not None and buffer.is_creator:
            buffer.shared_memory.unlink()
            buffer.is_creator = False
