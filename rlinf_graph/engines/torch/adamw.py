"""AdamW over parameters that are always updated together, by torch's fused kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlinf_graph.nodes.optimizer import AdamW


class Moments:
    """Running means of the gradients of each parameter and of their squares.

    `torch.optim.AdamW` has the same kernel do the same; for a small network, to look up every
    parameter's state and to group them again takes it three times as long as the update.

    Args:
        params: by name; they stay the same tensors.
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self._params = params
        self._steps = torch.zeros(())
        self._means: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        alike: dict[torch.dtype, list[str]] = defaultdict(list)
        for name, param in params.items():
            alike[param.dtype].append(name)
        self._alike = list(alike.values())

    def step(self, gradients: Mapping[str, Tensor], optimizer: AdamW, rate: float) -> None:
        """Update all parameters with the gradients of those names; called without autograd."""
        if not self._means:
            self._means = {name: torch.zeros_like(p) for name, p in self._params.items()}
            self._squares = {name: torch.zeros_like(p) for name, p in self._params.items()}
            self._steps = self._steps.to(next(iter(self._params.values())).device)
        self._steps.add_(1)
        for names in self._alike:
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]  as the optimizers of torch do
                [self._params[name] for name in names],
                [gradients[name] for name in names],
                [self._means[name] for name in names],
                [self._squares[name] for name in names],
                [],
                [self._steps] * len(names),
                lr=rate,
                beta1=optimizer.betas[0],
                beta2=optimizer.betas[1],
                weight_decay=optimizer.weight_decay,
                eps=optimizer.eps,
                amsgrad=False,
                maximize=False,
            )

    def state(self) -> dict[str, dict[str, Tensor]]:
        """By parameter, as torch's optimizer names it: `step`, `exp_avg` and `exp_avg_sq`.

        Not copies; empty before the first step.
        """
        return {
            name: {"step": self._steps, "exp_avg": mean, "exp_avg_sq": self._squares[name]}
            for name, mean in self._means.items()
        }

    def load_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore copies of what `state` gave, on the devices of the parameters."""
        self._steps = torch.zeros(())
        self._means, self._squares = {}, {}
        for name, kept in state.items():
            device = self._params[name].device
            self._steps = kept["step"].to(device, copy=True)
            self._means[name] = kept["exp_avg"].to(device, copy=True)
            self._squares[name] = kept["exp_avg_sq"].to(device, copy=True)

    def to(self, device: torch.device) -> None:
        """Move them."""
        self._steps = self._steps.to(device)
        self._means = {name: mean.to(device) for name, mean in self._means.items()}
        self._squares = {name: square.to(device) for name, square in self._squares.items()}
