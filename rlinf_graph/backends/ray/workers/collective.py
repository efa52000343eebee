"""Reductions among the ranks of a worker group, by torch.distributed: gloo, NCCL between GPUs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from rlinf_graph.backends.ray.rendezvous import Store, join, listen
from rlinf_graph.backends.ray.workers.errors import BrokenLinkError

ALLOWED = {
    "sum": dist.ReduceOp.SUM,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "product": dist.ReduceOp.PRODUCT,
}


class Links:
    """Process groups of one worker group, one for each kind of device, made when first used.

    They are apart from the default process group, which a worker may make by
    `torch.distributed.init_process_group` from its environment.
    """

    def __init__(self) -> None:
        """No connection yet."""
        self._groups: dict[str, Any] = {}
        self._store: Store | None = None

    def ready(self, kind: str) -> bool:
        """Whether tensors on this kind of device can be reduced."""
        return kind in self._groups

    def listen(self, host: str, size: int, timeout: float) -> str:
        """At rank 0, before `connect`: the `host:port` where the ranks meet."""
        self._store, address = listen(host, size, timedelta(seconds=timeout))
        return address

    def connect(self, kind: str, rank: int, size: int, address: str, timeout: float) -> None:
        """Meet the other ranks at the `host:port` where rank 0 listens.

        Raises:
            BrokenLinkError: they did not come.
            RuntimeError: torch has no NCCL, for tensors on GPUs.
        """
        limit = timedelta(seconds=timeout)
        mine, self._store = self._store, None
        try:
            store = join(address, size, limit) if mine is None else mine
            if kind == "cpu":
                self._groups[kind] = dist.ProcessGroupGloo(store, rank, size, limit)
                return
        except RuntimeError as error:
            raise BrokenLinkError(f"the ranks did not meet at {address}: {error}") from error
        if kind != "cuda" or not dist.is_nccl_available():
            raise RuntimeError(f"no reduction of tensors on {kind}: torch has no NCCL here")
        options = dist.ProcessGroupNCCL.Options()
        self._groups[kind] = dist.ProcessGroupNCCL(store, rank, size, options)

    def reduce(self, tensor: torch.Tensor, op: str, timeout: float) -> None:
        """Replace the tensor by the reduction over all ranks.

        Raises:
            BrokenLinkError: a rank went away.
        """
        kind = tensor.device.type
        options: Any = dist.AllreduceOptions()
        options.reduceOp, options.timeout = ALLOWED[op], timedelta(seconds=timeout)
        flat = tensor.detach().contiguous()
        try:
            self._groups[kind].allreduce([flat], options).wait()
        except RuntimeError as error:
            del self._groups[kind]
            raise BrokenLinkError(f"all_reduce broke off: {error}") from error
        tensor.detach().copy_(flat)
