"""Gradients before an optimizer step: divided by their weight and clipped, or refused."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.nodes.optimizer import AdamW


def divide_and_clip(
    gradients: Iterable[Tensor], norm: float, weight: float, optimizer: AdamW, *, of: str, step: int
) -> None:
    """Divide gradients by `weight` and clip them to a global norm, in place.

    Args:
        gradients: those that this process holds, any shapes.
        norm: of all gradients of the model, divided by `weight`.
        weight: what the gradients are summed over.
        optimizer: its `max_grad_norm`, where there is one, limits the norm: gradients are
            multiplied by `max_grad_norm / (norm + 1e-6)` where that is below 1, as torch does.
        of: the model, for messages.
        step: optimizer steps so far, for messages.

    Raises:
        CompileError: RG0605, for a norm that is no finite number.
    """
    if not math.isfinite(norm):
        raise fail(
            "RG0605",
            f"the gradient norm of `{of}` is {norm} at optimizer step {step}",
            notes=("its weights are as they were before this step",),
            help=("look at train/loss and train/ratio_max of the iterations before it",
                  f"lower the learning rate, {optimizer.rate(step):g} at this step"),
        )  # fmt: skip
    limit = math.inf if optimizer.max_grad_norm is None else optimizer.max_grad_norm
    factor = min(1.0, limit / (norm + 1e-6)) / weight
    if factor != 1:
        torch._foreach_mul_(list(gradients), factor)  # pyright: ignore[reportPrivateImportUsage]  as the optimizers of torch do
