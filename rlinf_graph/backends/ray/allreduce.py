"""Gradients of data-parallel ranks, summed over gloo, one process group for each train node."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import distributed as dist

from rlinf_graph.backends.ray.rendezvous import Store

TIMEOUT = timedelta(days=7)
"""Another rank may wait for its samples as long as they take: the watchdog of the run tells a wait
from a fault."""


class Ranks:
    """The ranks of one train node."""

    def __init__(self, rank: int, size: int, store: Store) -> None:
        """Meet the others at the store of rank 0."""
        self._group = dist.ProcessGroupGloo(store, rank, size, TIMEOUT)

    def sum(self, gradients: dict[str, torch.Tensor], weight: float) -> float:
        """Replace gradients by their sums over the ranks, in place; the sum of the weights."""
        tensors = list(gradients.values())
        kind = torch.promote_types(tensors[0].dtype, torch.float32)
        parts = [tensor.detach().reshape(-1).to("cpu", kind) for tensor in tensors]
        flat = torch.cat([*parts, torch.tensor([weight], dtype=kind)])
        self._group.allreduce([flat]).wait()  # pyright: ignore[reportAttributeAccessIssue]  # torch's stubs lack it
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()
        return float(flat[-1])
