"""How much memory a device's process has needed."""

from __future__ import annotations

import re
from pathlib import Path

STATUS = Path("/proc/self/status")


class MemoryMeter:
    """The most memory that was in use since its making.

    On a GPU, what torch's allocator has given out there; on processor cores, by how much the
    process has grown, with what it has read of shared memory (Linux only: `VmHWM` of proc(5)).
    """

    def __init__(self, kind: str) -> None:
        """`kind` of the device: `gpu` or `cpu`."""
        self._kind = kind
        self._before = _status("VmRSS") if kind == "cpu" else None

    def peak(self) -> float | None:
        """Bytes; None where nothing tells."""
        if self._kind == "gpu":
            import torch

            return float(torch.cuda.max_memory_allocated())
        most = _status("VmHWM")
        return None if most is None or self._before is None else max(0.0, most - self._before)


def _status(name: str) -> float | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024.0 * int(found[1]) if found else None
