"""This process's part of the weights, by the names of transformers: read, changed, handed on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlinf_graph.engines.megatron.checkpoint import Checkpoint
from rlinf_graph.engines.megatron.conversion import Piece, embedding, weights_of
from rlinf_graph.engines.megatron.model import Part
from rlinf_graph.engines.torch.heads import head_dtype, new_head
from rlinf_graph.ir.diagnostic import fail, suggest
from rlinf_graph.nodes.engine import Shard

Sizes = tuple[int, ...]


Saved = dict[str, Any]
"""A rectangle of a weight, or of what an optimizer keeps for it: `shape`, `offsets` and `values` as
in `Shard`. Plain data, which processes without Megatron can hold."""


class Weights:
    """The weights in a process's part of a model.

    Args:
        part: whose parameters they are.
        name: the model's name, for messages.
        counted: the parameters whose elements no process before it in the replica has.
    """

    def __init__(self, part: Part, name: str, counted: set[str]) -> None:
        self._part, self._name, self._counted = part, name, counted
        self._params = part.parameters()
        self._pieces = part.pieces()
        self._shapes = weights_of(part.made)
        self._places: dict[str, list[tuple[str, Piece]]] = {}
        for param, pieces in self._pieces.items():
            for piece in pieces:
                self._places.setdefault(piece.name, []).append((param, piece))

    @torch.no_grad()
    def read(self, checkpoint: Checkpoint, seed: int) -> None:
        """Set all weights; a `value` head that the checkpoint lacks is a new one."""
        for name, param in self._params.items():
            param.zero_()  # padding stays
            for piece in self._pieces[name]:
                if piece.name == "head.weight" and not checkpoint.has(piece.name):
                    new = new_head("value", piece.shape[1], self._part.dtype, seed, self._name)
                    piece.write(param, new.weight)
                else:
                    piece.write(param, checkpoint.read(piece))

    @torch.no_grad()
    def overwrite(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take, of whole weights, what this process holds.

        Raises:
            CompileError: RG0604, for a name that the model does not have, and for another shape.
        """
        for name, value in weights:
            if self._part.made.tied and name == "lm_head.weight":
                name = embedding(self._part.made)
            if name not in self._shapes:
                raise fail(
                    "RG0604",
                    f"`{self._name}` has no weight `{name}`",
                    help=(suggest(name, self._shapes),),
                )
            if tuple(value.shape) != self._shapes[name]:
                raise fail(
                    "RG0604",
                    f"weight `{name}` of `{self._name}` has shape {list(self._shapes[name])}, "
                    f"not {list(value.shape)}",
                    help=("give weights of a model of the same configuration",),
                )
            for param, piece in self._places.get(name, ()):
                piece.write(self._params[param], piece.of(value))

    def shards(self) -> Iterator[Shard]:
        """As `TrainEngine.shards`."""
        for name, param in self._params.items():
            for piece in self._pieces[name] if name in self._counted else ():
                values = piece.read(param.detach())
                yield Shard(piece.name, piece.shape, piece.offsets, values)

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, whole and on the CPU, in the replica's first process; elsewhere nothing.

        All processes of the replica go through it; each has one weight at a time.
        """
        group = self._part.replica
        mine = {s.name: (s.offsets, tuple(s.values.shape)) for s in self.shards()}
        held: list[dict[str, tuple[Sizes, Sizes]]] = [{} for _ in range(group.size())]
        dist.all_gather_object(held, mine, group=group)
        first = dist.get_global_rank(group, 0)
        for name, shape in self._shapes.items():
            if group.rank():
                if name in mine:
                    dist.send(self._own(name), first, group=group)
                continue
            dtype = head_dtype(self._part.dtype) if name == "head.weight" else self._part.dtype
            whole = torch.empty(shape, dtype=dtype)
            for rank, names in enumerate(held):
                if name in names:
                    offsets, size = names[name]
                    values = self._received(name, rank, size, dtype)
                    at = zip(offsets, size, strict=True)
                    whole[tuple(slice(start, start + n) for start, n in at)] = values.cpu()
            yield name, whole

    def _own(self, name: str) -> Tensor:
        param, piece = next(at for at in self._places[name] if at[0] in self._counted)
        return piece.read(self._params[param].detach()).contiguous()

    def _received(self, name: str, rank: int, size: Sizes, dtype: torch.dtype) -> Tensor:
        if rank == 0:
            return self._own(name)
        group = self._part.replica
        values = torch.empty(size, dtype=dtype, device=self._part.device)
        dist.recv(values, dist.get_global_rank(group, rank), group=group)
        return values

    def cut(self, tensors: Mapping[str, Tensor]) -> dict[str, Saved]:
        """Copies, on the CPU, of tensors shaped as parameters, by names of transformers."""
        return {
            piece.name: {
                "shape": piece.shape,
                "offsets": piece.offsets,
                "values": piece.read(held.detach()).to("cpu", copy=True),
            }
            for name, held in tensors.items()
            for piece in self._pieces[name]
        }

    def paste(
        self, what: str, saved: Mapping[str, Saved], names: Iterable[str]
    ) -> dict[str, Tensor]:
        """Tensors shaped as the parameters of those names, from what `cut` gave; padding is 0.

        Raises:
            CompileError: RG0604, for the state of another model or layout.
        """
        made: dict[str, Tensor] = {}
        for name in names:
            held = [saved.get(piece.name) for piece in self._pieces[name]]
            dtype = next((each["values"].dtype for each in held if each), torch.float32)
            made[name] = torch.zeros(self._params[name].shape, dtype=dtype)
            for piece, each in zip(self._pieces[name], held, strict=True):
                if each is None or _place(each) != (piece.shape, piece.offsets, piece.size):
                    raise fail(
                        "RG0604",
                        f"the saved {what} of `{self._name}` lack this process's part of "
                        f"`{piece.name}`",
                        help=("resume with the model and the layout that the state is of",),
                    )
                piece.write(made[name], each["values"])
        return made


def _place(saved: Saved) -> tuple[Sizes, Sizes, Sizes]:
    return tuple(saved["shape"]), tuple(saved["offsets"]), tuple(saved["values"].shape)
