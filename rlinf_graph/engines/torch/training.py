"""Gradients, master weights and optimizer states of a model in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlinf_graph.engines.torch.adamw import Moments
from rlinf_graph.engines.torch.clipping import divide_and_clip
from rlinf_graph.engines.torch.weights import require_all
from rlinf_graph.nodes.execution import emit
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW

EXACT = (torch.float32, torch.float64)


class Training:
    """What training keeps besides the model.

    Parameters in bfloat16 have float32 copies, the masters: gradients add up there and the
    optimizer updates them, since an update of 1e-6 is lost in the eight bits of a bfloat16
    mantissa. Parameters of float32 and float64 are their own masters.

    Args:
        model: its parameters are trained, all of them.
        name: the model's name, for messages.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self.params = dict(model.named_parameters())
        self.masters = {
            n: p if p.dtype in EXACT else nn.Parameter(p.detach().float())
            for n, p in self.params.items()
        }
        self.steps = 0
        self._moments = Moments(self.masters)

    def collect(self) -> None:
        """Move what a backward pass left into the gradients of the masters."""
        for name, param in self.params.items():
            master = self.masters[name]
            if master is param or param.grad is None:
                continue
            if master.grad is None:
                master.grad = param.grad.float()
            else:
                master.grad += param.grad
            param.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """The gradients held, by name, to be changed in place; zeros where there is none."""
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return {name: m.grad for name, m in self.masters.items() if m.grad is not None}

    @torch.no_grad()
    def step(self, optimizer: AdamW, weight: float, metrics: Metrics) -> None:
        """Divide the gradients by `weight`, clip them to a global norm, update, forget them.

        A weight of 0 means that no sample counted, and divides by 1. Emits the norm before
        clipping as `train/grad_norm` and the learning rate as `train/lr`.

        Raises:
            CompileError: RG0605, for a gradient norm that is no finite number.
        """
        gradients, weight = self.gradients(), weight or 1.0
        held = list(gradients.values())
        norms = torch._foreach_norm(held)  # pyright: ignore[reportPrivateImportUsage]  as the optimizers of torch do
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) / weight
        divide_and_clip(held, norm, weight, optimizer, of=self.name, step=self.steps)
        rate = optimizer.rate(self.steps)
        self._moments.step(gradients, optimizer, rate)
        for master in self.masters.values():
            master.grad = None
        self.steps += 1
        for name, param in self.params.items():
            if self.masters[name] is not param:
                param.copy_(self.masters[name])
        emit(metrics, "train/grad_norm", norm)
        emit(metrics, "train/lr", rate)

    @torch.no_grad()
    def adopt(self) -> None:
        """Take the model's weights as masters, after they were overwritten."""
        for name, param in self.params.items():
            if self.masters[name] is not param:
                self.masters[name].copy_(param)

    def state(self) -> dict[str, Any]:
        """Copies on the CPU: `masters` and `optimizer` by parameter name, and `steps`."""
        return {
            "masters": {n: _copy(m) for n, m in self.masters.items() if m is not self.params[n]},
            "optimizer": {
                n: {key: _copy(value) for key, value in kept.items()}
                for n, kept in self._moments.state().items()
            },
            "steps": self.steps,
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave.

        Raises:
            CompileError: RG0604, for the state of another model.
        """
        mine = {n: m for n, m in self.masters.items() if m is not self.params[n]}
        require_all(mine, state["masters"], "master weights", self.name)
        if state["steps"]:
            require_all(self.masters, state["optimizer"], "optimizer states", self.name)
        for name, master in mine.items():
            master.copy_(state["masters"][name])
        self._moments.load_state(state["optimizer"])
        for master in self.masters.values():
            master.grad = None
        self.steps = state["steps"]

    def to(self, device: torch.device) -> None:
        """Move masters, gradients and optimizer states."""
        for master in self.masters.values():
            master.data = master.data.to(device)
            if master.grad is not None:
                master.grad.data = master.grad.data.to(device)
        self._moments.to(device)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
