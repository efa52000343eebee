"""Models that say one number instead of a next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlinf_graph.engines.torch.noise import stream
from rlinf_graph.engines.torch.sampling import wide


class Scalar(nn.Module):
    """A transformer, and a linear layer without bias from its hidden states to one number.

    Args:
        backbone: a transformers model whose output has `last_hidden_state`.
        head: from the hidden size to 1, of at least float32.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        """One number for the sequence up to and with each token; `(n, t)` of int64 to `(n, t)`."""
        hidden = self.backbone(input_ids=tokens, use_cache=False).last_hidden_state
        return self.head(wide(hidden))[..., 0]


def new_head(kind: str, size: int, dtype: torch.dtype, seed: int, name: str) -> nn.Linear:
    """A head to begin with: zero for `value`, small for `score`.

    The values of a critic that knows nothing are 0. A `score` head is normal with a deviation of
    0.02 and depends on the seed and the model's name only.
    """
    draws = torch.Generator().manual_seed(stream(seed, name, "head"))
    weight = torch.zeros(1, size)
    if kind == "score":
        weight.normal_(std=0.02, generator=draws)
    with torch.device("meta"):
        head = nn.Linear(size, 1, bias=False)
    head.weight = nn.Parameter(weight.to(head_dtype(dtype)))
    return head


def head_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of a head on a backbone of this type: bfloat16 is too coarse for a value."""
    return torch.float64 if dtype == torch.float64 else torch.float32
