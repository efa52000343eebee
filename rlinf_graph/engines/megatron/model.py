"""One process's part of a model: what it computes of packed rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlinf_graph.engines.megatron import adapter
from rlinf_graph.engines.megatron.architecture import Architecture
from rlinf_graph.engines.megatron.conversion import Piece, Place, pieces
from rlinf_graph.engines.megatron.packing import Row
from rlinf_graph.engines.torch.heads import head_dtype
from rlinf_graph.engines.torch.sampling import wide
from rlinf_graph.ir.plan import Parallel


class ValueHead(nn.Module):
    """In the place of the output layer: one number a token, the same on each rank of tp."""

    def __init__(self, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden, dtype=head_dtype(dtype)))

    def forward(self, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
        """`(t, 1, hidden)` to `(t, 1, 1)`, and no bias, as Megatron's layers say."""
        return nn.functional.linear(wide(hidden), self.weight), None


class Part:
    """The part of a model that this process holds, and its process groups.

    Args:
        made: the model's sizes.
        parallel: the layout.
        dtype: of the weights; their values are not set.
        device: where to.
        recompute: activations in the backward pass.
    """

    def __init__(
        self,
        made: Architecture,
        parallel: Parallel,
        *,
        dtype: torch.dtype,
        device: torch.device,
        recompute: bool = False,
    ) -> None:
        self.made, self.parallel, self.dtype, self.device = made, parallel, dtype, device
        self.groups = adapter.join(parallel, device)
        self.replica = adapter.replica_of(parallel.tp * parallel.cp * parallel.pp)
        self.first, self.last = adapter.stage_of(self.groups)
        self.module: Any = adapter.build(made, parallel, self.groups, dtype, recompute)
        self._rows: Tensor | None = None
        if self.last:
            self._top()
        self.module.to(device)
        adapter.set_frequencies(self.module, made.frequencies, device)

    def _top(self) -> None:
        """Reach the output layer with all ranks' tokens, and of those only the wanted ones."""
        if self.made.head == "value":
            self.module.output_layer = ValueHead(self.made.hidden, self.dtype)
        else:
            self.module.output_layer.sequence_parallel = False
        self.module.output_layer.register_forward_pre_hook(self._chosen)

    def _chosen(self, _module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        hidden = given[0]
        if self.groups.tp.size() > 1:
            hidden = adapter.gathered_tokens(hidden, self.groups.tp)
        return (hidden if self._rows is None else hidden[self._rows],)

    def place(self) -> Place:
        """Where this process stands."""
        groups, made = self.groups, self.made
        return Place(
            tp=groups.tp.rank(),
            tp_size=groups.tp.size(),
            first=groups.pp.rank() * (made.layers // groups.pp.size()),
            expert=groups.ep.rank() * (made.experts // groups.ep.size()),
            expert_tp=groups.expt_tp.rank(),
            expert_tp_size=groups.expt_tp.size(),
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        """By Megatron's name in this process."""
        return dict(self.module.named_parameters())

    def pieces(self) -> dict[str, tuple[Piece, ...]]:
        """What of transformers' weights each of them holds."""
        place = self.place()
        return {name: pieces(name, self.made, place) for name in self.parameters()}

    def forward(self, row: Row) -> Tensor:
        """What this stage says of a row, for the next stage or for `finish` of `run`.

        The last stage's is `(k, v)`: logits after the wanted tokens, this rank's part of the
        vocabulary; or `(t, 1)`, values after all tokens.
        """
        self._rows = row.after if self.made.head == "lm" else None
        said = self.module(
            row.tokens[None], None, None, packed_seq_params=adapter.packed_as(row.lengths)
        )
        return said[0] if self.last else said

    def run(
        self,
        batches: Sequence[Any],
        row: Callable[[Any], Row],
        finish: Callable[[Any, Tensor], Any],
        *,
        backward: bool,
    ) -> list[Any]:
        """As `adapter.run`, for batches with rows."""
        return adapter.run(
            self.module,
            self.groups,
            batches,
            lambda batch: self.forward(row(batch)),
            finish,
            backward=backward,
        )
