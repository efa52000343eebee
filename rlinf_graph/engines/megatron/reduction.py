"""Sums over processes: of gradients, and of numbers that all of them have to agree on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from rlinf_graph.engines.megatron.model import Part

BUCKET = 1 << 26
"""Bytes of gradients that are summed in one call, or one larger gradient."""


class Reduction:
    """Which processes hold the same parameter, or see a part of what reaches it.

    Args:
        part: of the model.
    """

    def __init__(self, part: Part) -> None:
        self._groups = groups = part.groups
        self._device = part.device
        self._experts = {
            name for name in part.parameters() if ".experts." in name and part.parallel.ep > 1
        }
        self.tied = _tied(part)
        cut = {name for name, held in part.pieces().items() if any(p.size != p.shape for p in held)}
        first = groups.cp.rank() == 0
        self.counted = {
            name
            for name in part.parameters()
            if (name in self._experts and groups.cp.rank() < groups.ep.size())
            or (first and (name in cut or groups.tp.rank() == 0)
                and not (name == self.tied and not part.first))
        }  # fmt: skip
        self._partial = [
            name for name, param in part.parameters().items()
            if groups.tp.size() > 1
            and (getattr(param, "sequence_parallel", False) or ("_layernorm." in name
                 and ".self_attention." in name))
        ]  # fmt: skip

    def group_of(self, name: str) -> dist.ProcessGroup:
        """The processes that hold the same values of a parameter and see other samples."""
        return self._groups.expt_dp if name in self._experts else self._groups.dp_cp

    def sum_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Add, in place, what the other processes have for the same parameters."""
        if self._partial:
            _sum([gradients[name] for name in self._partial], self._groups.tp)
        if self.tied:
            _sum([gradients[self.tied]], self._groups.embd)
        by_group: dict[dist.ProcessGroup, list[Tensor]] = defaultdict(list)
        for name, gradient in gradients.items():
            by_group[self.group_of(name)].append(gradient)
        for group, held in by_group.items():
            _sum(held, group)

    def norm(self, gradients: Mapping[str, Tensor]) -> float:
        """Of the whole model's gradients, of which each element counts once."""
        counts = self._groups.dp.rank() == 0
        held = [gradients[name] for name in gradients if counts and name in self.counted]
        squares = torch.zeros((), dtype=torch.float64, device=self._device)
        if held:
            norms = torch._foreach_norm(held)  # pyright: ignore[reportPrivateImportUsage]  as the optimizers of torch do
            squares = torch.stack(norms).double().square().sum()
        dist.all_reduce(squares)
        return float(squares.sqrt())

    def sum_over_replicas(self, number: float) -> float:
        """Of a number that all processes of a replica have."""
        total = torch.tensor(number, dtype=torch.float64, device=self._device)
        dist.all_reduce(total, group=self._groups.dp)
        return float(total)


def _tied(part: Part) -> str:
    """The parameter that another stage of the pipeline holds too."""
    if not part.made.tied or part.groups.pp.size() == 1:
        return ""
    return (
        "embedding.word_embeddings.weight" if part.first
        else "output_layer.weight" if part.last else ""
    )  # fmt: skip


def _sum(tensors: list[Tensor], group: dist.ProcessGroup) -> None:
    if group.size() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat, group=group)
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Of one type each, in an order that all processes of a group share."""
    by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_type[tensor.dtype].append(tensor)
    for alike in by_type.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in alike:
            if bucket and size + tensor.nbytes > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket
