"""Gradients, master weights and optimizer states of this process's part of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlinf_graph.engines.megatron.model import Part
from rlinf_graph.engines.megatron.reduction import Reduction
from rlinf_graph.engines.torch.adamw import Moments
from rlinf_graph.engines.torch.clipping import divide_and_clip
from rlinf_graph.engines.torch.training import EXACT
from rlinf_graph.nodes.execution import emit
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW


class Training:
    """What training keeps besides the parameters, in the types of `engines.torch.training`.

    Gradients of parameters in bfloat16 add up in float32, after each micro-batch. Where `sharded`,
    each master weight and its optimizer states are on one of the processes that hold the parameter,
    which hands the others its new values (ZeRO stage 1, Rajbhandari et al. 2020).

    Args:
        part: of the model; all of its parameters are trained.
        name: the model's name, for messages.
        sharded: see above.
    """

    def __init__(self, part: Part, name: str, *, sharded: bool = False) -> None:
        self.name = name
        self.params = part.parameters()
        self.reduction = Reduction(part)
        self.steps = 0
        self._sums: dict[str, Tensor] = {}
        self._owners = _owners(self.params, self.reduction) if sharded else {}
        self.masters: dict[str, Tensor] = {
            n: p.detach() if p.dtype in EXACT else p.detach().float()
            for n, p in self.params.items()
            if self._owns(n)
        }
        self.moments = Moments(self.masters)
        for key, param in self.params.items():
            if param.dtype not in EXACT:
                param.register_post_accumulate_grad_hook(self._collector(key))

    def _owns(self, name: str) -> bool:
        return self._owners.get(name) in (None, self.reduction.group_of(name).rank())

    def _collector(self, name: str):
        def collect(param: Tensor) -> None:
            assert param.grad is not None
            if name in self._sums:
                self._sums[name] += param.grad
            else:
                self._sums[name] = param.grad.float()
            param.grad = None

        return collect

    def gradients(self) -> dict[str, Tensor]:
        """The gradients held, by Megatron's name, not copies; zeros where there is none."""
        held: dict[str, Tensor] = {}
        for name, param in self.params.items():
            if param.dtype in EXACT:
                if param.grad is None:
                    param.grad = torch.zeros_like(param)
                held[name] = param.grad
            else:
                if name not in self._sums:
                    self._sums[name] = torch.zeros_like(param, dtype=torch.float32)
                held[name] = self._sums[name]
        return held

    @torch.no_grad()
    def step(self, optimizer: AdamW, weight: float, metrics: Metrics) -> None:
        """Sum gradients and weights over replicas, and go on as `engines.torch.training` does.

        Raises:
            CompileError: RG0605, for a gradient norm that is no finite number, on all processes.
        """
        gradients = self.gradients()
        weight = self.reduction.sum_over_replicas(weight) or 1.0
        self.reduction.sum_gradients(gradients)
        norm = self.reduction.norm(gradients) / weight
        divide_and_clip(gradients.values(), norm, weight, optimizer, of=self.name, step=self.steps)
        rate = optimizer.rate(self.steps)
        if self.masters:
            self.moments.step({n: gradients[n] for n in self.masters}, optimizer, rate)
        self.steps += 1
        self._forget()
        self._publish()
        emit(metrics, "train/grad_norm", norm)
        emit(metrics, "train/lr", rate)

    def _forget(self) -> None:
        self._sums = {}
        for param in self.params.values():
            param.grad = None

    def _publish(self) -> None:
        """Take the masters' values into the parameters, of this process and of others."""
        for name, param in self.params.items():
            if name in self.masters and param.dtype not in EXACT:
                param.copy_(self.masters[name])
            if name in self._owners:
                group = self.reduction.group_of(name)
                source = dist.get_global_rank(group, self._owners[name])
                dist.broadcast(param.data, source, group=group)

    @torch.no_grad()
    def adopt(self) -> None:
        """Take the parameters as masters, after they were overwritten."""
        for name, master in self.masters.items():
            if self.params[name].dtype not in EXACT:
                master.copy_(self.params[name])

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a state keeps, by its kind and Megatron's name; not copies, and no counters."""
        kept: dict[str, dict[str, Tensor]] = {
            "masters": {n: m for n, m in self.masters.items() if self.params[n].dtype not in EXACT}
        }
        for kind in ("exp_avg", "exp_avg_sq"):
            kept[kind] = {name: held[kind] for name, held in self.moments.state().items()}
        return kept

    @torch.no_grad()
    def restore(self, kept: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """Take over what `tensors` gave after so many optimizer steps."""
        for name, master in kept["masters"].items():
            self.masters[name].copy_(master)
        count = torch.tensor(float(steps))
        self.moments.load_state(
            {
                name: {"step": count, "exp_avg": mean, "exp_avg_sq": kept["exp_avg_sq"][name]}
                for name, mean in kept["exp_avg"].items()
            }
        )
        self.steps = steps
        self._forget()

    def to(self, device: torch.device) -> None:
        """Move masters, gradients and optimizer states; parameters are moved already."""
        for name, master in self.masters.items():
            exact = self.params[name].dtype in EXACT
            master.data = self.params[name].data if exact else master.data.to(device)
        for param in self.params.values():
            if param.grad is not None:
                param.grad.data = param.grad.data.to(device)
        self._sums = {name: held.to(device) for name, held in self._sums.items()}
        self.moments.to(device)


def _owners(params: Mapping[str, nn.Parameter], reduction: Reduction) -> dict[str, int]:
    """For each parameter a rank of its group, so that all have about as many elements."""
    loads: dict[dist.ProcessGroup, list[int]] = {}
    owners: dict[str, int] = {}
    for name in sorted(params, key=lambda name: -params[name].numel()):
        group = reduction.group_of(name)
        if group.size() == 1:
            continue
        load = loads.setdefault(group, [0] * group.size())
        owners[name] = load.index(min(load))
        load[owners[name]] += params[name].numel()
    return owners
