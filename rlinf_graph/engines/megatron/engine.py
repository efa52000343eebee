"""The Megatron engine: one process of those that hold a model together and train it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoConfig

from rlinf_graph.engines.megatron import adapter, forward
from rlinf_graph.engines.megatron.architecture import Architecture, architecture_of
from rlinf_graph.engines.megatron.capabilities import CAPABILITIES
from rlinf_graph.engines.megatron.checkpoint import Checkpoint, write
from rlinf_graph.engines.megatron.model import Part
from rlinf_graph.engines.megatron.reduction import Reduction
from rlinf_graph.engines.megatron.training import Training
from rlinf_graph.engines.megatron.weights import Weights
from rlinf_graph.engines.torch.device import device_of, dtype_of
from rlinf_graph.engines.torch.loading import load_text
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.ir.batches import Prompt, Rollouts
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.ir.plan import Parallel
from rlinf_graph.nodes.capabilities import Capabilities
from rlinf_graph.nodes.engine import Shard, TrainBatch
from rlinf_graph.nodes.loss import Loss
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW
from rlinf_graph.nodes.registry import Member

TIMEOUT = timedelta(minutes=10)
"""After which a process that waits for another gives up with an error."""


class MegatronEngine:
    """A part of a model, and of its training.

    Args:
        model: a folder or hub name of the Llama or Qwen families, with weights in safetensors.
        seed: of the run; decides a new `value` head.
        device: as in torch.
        dtype: `float32` or `bfloat16`.
        trainable: whether gradients and optimizer states may be asked for.
        member: which of the processes this is; their layout.

    Raises:
        CompileError: RG0503, for a model that is not there, and for one or a layout that Megatron
            cannot train.
    """

    capabilities: ClassVar[Capabilities] = CAPABILITIES

    def __init__(
        self,
        model: ModelDef,
        *,
        seed: int,
        device: str,
        dtype: str,
        trainable: bool,
        member: Member | None = None,
    ) -> None:
        if member is None:
            raise fail("RG0503", "the megatron engine lives in worker processes: run on Ray")
        self.definition = model
        self.version = 0
        self.device = device_of(model, device)
        parallel = member.settings.parallel
        with Checkpoint(model) as checkpoint:
            self._config = AutoConfig.from_pretrained(checkpoint.folder)
            self._generation = checkpoint.generation
            self._made = architecture_of(self._config, model)
            _require_divisible(self._made, parallel, model)
            self._text = load_text(model)
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            if not dist.is_initialized():
                backend = "gloo" if self.device.type == "cpu" else "cpu:gloo,cuda:nccl"
                dist.init_process_group(backend, timeout=TIMEOUT)
            self._part = Part(
                self._made,
                parallel,
                dtype=dtype_of(dtype, self.device, small=False),
                device=self.device,
                recompute=bool(member.settings.recompute),
            )
            self._weights = Weights(self._part, model.name, Reduction(self._part).counted)
            self._weights.read(checkpoint, seed)
        self._part.module.requires_grad_(trainable)
        self._training: Training | None = None
        if trainable:
            sharded = parallel.shard == "optimizer"
            self._training = Training(self._part, model.name, sharded=sharded)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt; a list of messages goes through the chat template."""
        return self._reader.encode([prompt])[0]

    def tokenize_completion(self, text: str) -> list[int]:
        """Tokens of an answer, with the end token."""
        return self._reader.completion(text)

    def logprobs(self, rollouts: Rollouts) -> Tensor:
        """Log-probability of each of the policy's tokens, at its temperature, packed; else 0.

        All processes of the replica have the result.
        """
        self._require("lm")
        return forward.logprobs(self._part, rollouts)

    def values(self, rollouts: Rollouts) -> Tensor:
        """State values, packed, one more than the tokens of each sample; the first is 0."""
        self._require("value")
        return forward.values(self._part, rollouts)

    def accumulate(self, batches: Sequence[TrainBatch], loss: Loss, metrics: Metrics) -> float:
        """Add the gradients of the loss's sums to those held; the sum of its weights.

        The micro-batches go through the pipeline one behind the other (1F1B).

        Raises:
            CompileError: RG0503, for a loss that reads what the model's head does not say.
        """
        self._require("lm" if loss.reads == "logprobs" else "value")
        self._trained()
        return forward.accumulate(self._part, batches, loss, metrics)

    def gradients(self) -> dict[str, Tensor]:
        """Refuse: replicas are joined, and sum their gradients in `optimizer_step`."""
        raise fail("RG0503", "the megatron engine sums gradients itself, in its optimizer step")

    def optimizer_step(self, optimizer: AdamW, weight: float, metrics: Metrics) -> None:
        """Sum gradients and weights over all replicas, divide, clip, update, and hold none.

        Raises:
            CompileError: RG0605, for a gradient norm that is no finite number.
        """
        self._trained().step(optimizer, weight, metrics)

    def shards(self) -> Iterator[Shard]:
        """This process's parts of all weights, one after another."""
        return self._weights.shards()

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int = 0) -> None:
        """Overwrite weights in place; those not given stay.

        Raises:
            CompileError: RG0604, for a name that the model does not have, and for another shape.
        """
        self._weights.overwrite(weights)
        if self._training is not None:
            self._training.adopt()
        self.version = version

    def state(self) -> dict[str, Any]:
        """Copies, on the CPU, of this process's weights and optimizer states, and the steps made.

        By the names of transformers, with their places in the whole weights.
        """
        training = self._trained()
        kept = {kind: self._weights.cut(held) for kind, held in training.tensors().items()}
        weights = self._weights.cut(self._part.parameters())
        return {"weights": weights, "training": kept, "steps": training.steps}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave in the same layout.

        Raises:
            CompileError: RG0604, for the state of another model or layout.
        """
        training, params = self._trained(), self._part.parameters()
        weights = self._weights.paste("weights", state["weights"], params)
        names = training.masters if state["steps"] else ()
        kept = {
            kind: self._weights.paste("optimizer states", state["training"][kind], names)
            for kind in ("exp_avg", "exp_avg_sq")
        }
        apart = training.tensors()["masters"]
        kept["masters"] = self._weights.paste("masters", state["training"]["masters"], apart)
        for name, value in weights.items():
            params[name].copy_(value)
        training.restore(kept, state["steps"])

    def save(self, path: Path) -> None:
        """Write a folder that transformers' `from_pretrained` loads, tokenizer included."""
        gathered = self._weights.gathered()
        if self._part.replica.rank():
            for _ in gathered:
                pass
            return
        self._config.dtype = self._part.dtype
        write(path, gathered, self._config, self._generation)
        if self._text is not None:
            self._text.tokenizer.save_pretrained(path)

    def load(self) -> None:
        """Bring weights and states onto the device."""
        self._move(self.device)

    def offload(self) -> None:
        """Move weights and states to the CPU, where they stay if that is the device."""
        self._move(torch.device("cpu"))
        adapter.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _move(self, device: torch.device) -> None:
        self._part.module.to(device)
        if self._training is not None:
            self._training.to(device)

    def _require(self, head: str) -> None:
        has = self.definition.head
        if has != head:
            raise fail(
                "RG0503",
                f"`{self.definition.name}` has head `{has}`; this needs `{head}`",
                self.definition.span,
                help=(f'rl.Model("{self.definition.path}", head="{head}")',),
            )

    def _trained(self) -> Training:
        if self._training is None:
            raise fail("RG0503", f"`{self.definition.name}` was loaded without `trainable`")
        return self._training

    @property
    def _reader(self) -> Text:
        if self._text is None:
            raise fail("RG0503", f"`{self.definition.name}` has no tokenizer: "
                       f"{self.definition.path}", self.definition.span)  # fmt: skip
        return self._text


def _require_divisible(made: Architecture, parallel: Parallel, model: ModelDef) -> None:
    """The sizes that Megatron divides, and the axes that cannot go together."""
    for size, what, axis in (
        (made.heads, "attention heads", "tp"),
        (made.groups, "key-value heads", "tp"),
        (made.ffn, "columns of a feed-forward layer", "tp"),
        (made.expert_ffn, "columns of an expert", "tp"),
        (made.layers, "layers", "pp"),
        (made.experts, "experts", "ep"),
    ):
        if size % getattr(parallel, axis):
            raise fail(
                "RG0503",
                f"{axis} {getattr(parallel, axis)} does not divide the {size} {what} of "
                f"`{model.name}`",
                model.span,
                help=(f"choose {axis} among the divisors of {size}",),
            )
    if parallel.ep not in (1, parallel.cp):
        raise fail(
            "RG0503",
            f"the megatron engine spreads the experts of `{model.name}` over the cp ranks of a "
            f"replica: ep is 1 or cp, {parallel.cp}, not {parallel.ep}",
            model.span,
            notes=("replicas are called one by one; experts in another replica would not answer",),
        )
