"""Optimizers and learning-rate schedules as data; an engine applies them."""

from __future__ import annotations

import math
from typing import Literal

from rlinf_graph.ir.value import struct


@struct
class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with gradient clipping.

    Attributes:
        lr: peak learning rate.
        betas, eps, weight_decay: as in torch.
        max_grad_norm: clip to this global norm; None leaves gradients alone.
        schedule: `constant`, `linear` (to 0) or `cosine` (to 0), after the warm-up.
        warmup_steps: optimizer steps of linear warm-up.
        total_steps: optimizer steps of the whole schedule; needed by `linear` and `cosine`.
    """

    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None

    def rate(self, step: int) -> float:
        """Learning rate of the optimizer step with this number, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant" or not self.total_steps:
            return self.lr
        span = max(1, self.total_steps - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        if self.schedule == "linear":
            return self.lr * (1 - done)
        return self.lr * (1 + math.cos(math.pi * done)) / 2
