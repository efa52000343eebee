"""How a process computes on processor cores: its threads and its memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

KEEP = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_ARENA_MAX": (-8, 1),
}
"""Variables of a new process, options of mallopt(3), values: freed memory stays, in one heap."""


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Compute with so many threads inside the block; 0 leaves everything as it is.

    A rank has as many as its devices have cores: that is what the plan counts on, and what others
    leave alone. More threads than idle cores make every parallel region wait for the slowest.
    """
    import torch

    before = torch.get_num_threads()
    if count:
        use_cores(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_cores(count: int) -> None:
    """Compute with so many threads from now on, and keep the memory of freed tensors.

    To get pages from the system again costs a third of a small model's forward pass, and how often
    that happens depends on sizes and threads: times could not be told from one another. Where the
    C library is not glibc, memory is handled as it was.
    """
    import torch

    torch.set_num_threads(count)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in KEEP.values():
            mallopt(option, value)


def variables() -> dict[str, str]:
    """Of a process that is to keep its memory from its beginning, in all of its threads."""
    return {name: str(value) for name, (_option, value) in KEEP.items()}
