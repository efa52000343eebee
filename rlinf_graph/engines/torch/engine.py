"""The torch engine: a model of transformers in one process, for rollout, scoring and training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlinf_graph.engines.torch import forward, weights
from rlinf_graph.engines.torch.generation import generate
from rlinf_graph.engines.torch.heads import Scalar
from rlinf_graph.engines.torch.loading import load
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.engines.torch.training import Training
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Prompt, Prompts, Rollouts
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.engine import Capabilities, Key, Sampling, TrainBatch
from rlinf_graph.nodes.loss import Loss
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchEngine:
    """A model on one device.

    Args:
        model: what to load; see `rlinf_graph.engines.torch.loading`.
        seed: of the run; decides random weights, together with the model's name.
        device: `auto` (a GPU if there is one), or as in torch.
        dtype: `auto` (as the model says; else bfloat16 on GPUs, float32 on CPUs), `float64`,
            `float32` or `bfloat16`.
        trainable: whether gradients and optimizer states may be asked for.

    Raises:
        CompileError: RG0503, for a model or a device that is not there.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        name="torch",
        roles=("rollout", "forward", "train"),
        parallel=("dp",),
        sync=("copy", "broadcast"),
        offload=True,
        keyed_randomness=True,
        packages=("torch", "transformers"),
    )

    def __init__(
        self, model: ModelDef, *, seed: int, device: str, dtype: str, trainable: bool
    ) -> None:
        self.definition = model
        self.device = _device(model, device)
        self.dtype = _dtype(dtype if dtype != "auto" else model.dtype, self.device)
        loaded, self._text = load(model, seed, self.dtype)
        self.model = loaded.requires_grad_(trainable)
        self._training: Training | None = None
        self.load()
        if trainable:
            self._training = Training(self.model, model.name)

    def generate(self, prompts: Prompts, sampling: Sampling, key: Key, version: int) -> Rollouts:
        """Sample responses with keyed noise; at temperature 0 log-probabilities are 0.

        Raises:
            CompileError: RG0503, for another head than `lm` and for prompts that the tokenizer
                cannot read.
        """
        return generate(self._language_model(), self._reader, prompts, sampling, key, version)

    def logprobs(self, rollouts: Rollouts) -> Tensor:
        """Log-probability of each of the policy's tokens, at its temperature, packed; else 0."""
        return forward.logprobs(self._language_model(), rollouts, self.device)

    def values(self, rollouts: Rollouts) -> Tensor:
        """State values, packed, one more than the tokens of each sample; the first is 0."""
        return forward.values(self._scalar("value"), rollouts, self.device)

    def scores(self, texts: list[tuple[Prompt, str]]) -> Tensor:
        """One number for each (prompt, response), `(n,)`, read at the last token.

        Texts go through the chat template where the tokenizer has one, else one after the other.
        """
        model = self._scalar("score")
        sequences = [self._reader.conversation(prompt, response) for prompt, response in texts]
        return forward.scores(model, sequences, self.device)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt; a list of messages goes through the chat template."""
        return self._reader.encode([prompt])[0]

    def tokenize_completion(self, text: str) -> list[int]:
        """Tokens of an answer, with the end token."""
        return self._reader.completion(text)

    def accumulate(self, batch: TrainBatch, loss: Loss, metrics: Metrics) -> float:
        """Add the gradients of the loss's sum to those held; the loss's weight.

        Raises:
            CompileError: RG0503, for a loss that reads what the model's head does not say.
        """
        self._require("lm" if loss.reads == "logprobs" else "value")
        training = self._trained()
        batch = _moved(batch, self.device)
        outputs = forward.outputs(self.model, batch.samples, entropy=loss.entropy)
        total, weight = loss(outputs, batch, metrics)
        if total.requires_grad:
            total.backward()
            training.collect()
        return weight

    def gradients(self) -> dict[str, Tensor]:
        """The gradients held, by parameter name, to be changed in place; at least float32."""
        return self._trained().gradients()

    def optimizer_step(self, optimizer: AdamW, weight: float, metrics: Metrics) -> None:
        """Divide the gradients by `weight`, clip, update, and hold none.

        Raises:
            CompileError: RG0605, for a gradient norm that is no finite number.
        """
        self._trained().step(optimizer, weight, metrics)

    def weights(self) -> dict[str, Tensor]:
        """Parameters and stored buffers by name, not copies; tied ones under one name."""
        return weights.weights_of(self.model)

    def load_weights(self, weights_: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite weights in place; those not given stay.

        Raises:
            CompileError: RG0604, for a name that the model does not have, and for another shape.
        """
        weights.overwrite(self.model, self.definition.name, weights_)
        if self._training is not None:
            self._training.adopt()

    def state(self) -> dict[str, Any]:
        """Copies, on the CPU, of weights and optimizer states, and the steps made.

        Gradients are not part of it: ask between an optimizer step and the next accumulation.
        """
        copies = {n: t.to("cpu", copy=True) for n, t in self.weights().items()}
        return {"weights": copies, "training": self._trained().state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave.

        Raises:
            CompileError: RG0604, for the state of another model.
        """
        held, name = self.weights(), self.definition.name
        weights.require_all(held, state["weights"], "weights", name)
        weights.overwrite(self.model, name, state["weights"].items())
        self._trained().load_state(state["training"])

    def save(self, path: Path) -> None:
        """Write a folder that transformers' `from_pretrained` loads, tokenizer included."""
        weights.save(self.model, self._text, path)

    def load(self) -> None:
        """Bring weights and states onto the device."""
        self._move(self.device)

    def offload(self) -> None:
        """Move weights and states to the CPU, where they stay if that is the device."""
        self._move(torch.device("cpu"))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _move(self, device: torch.device) -> None:
        cast("nn.Module", self.model).to(device)
        if self._training is not None:
            self._training.to(device)

    def _language_model(self) -> PreTrainedModel:
        self._require("lm")
        return cast("PreTrainedModel", self.model)

    def _scalar(self, head: str) -> Scalar:
        self._require(head)
        return cast("Scalar", self.model)

    def _require(self, head: str) -> None:
        if self.definition.head != head:
            raise fail(
                "RG0503",
                f"`{self.definition.name}` has head `{self.definition.head}`; this needs `{head}`",
                self.definition.span,
                help=(f'rl.Model("{self.definition.path}", head="{head}")',),
            )

    @property
    def _reader(self) -> Text:
        if self._text is None:
            raise fail("RG0503", f"`{self.definition.name}` has no tokenizer: "
                       f"{self.definition.path}", self.definition.span)  # fmt: skip
        return self._text

    def _trained(self) -> Training:
        if self._training is None:
            raise fail("RG0503", f"`{self.definition.name}` was loaded without `trainable`")
        return self._training


def _device(model: ModelDef, name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise fail(
            "RG0503",
            f"`{model.name}` is to run on {name}; torch finds {torch.cuda.device_count()} GPUs",
            help=("run on a machine of the cluster file, with a CUDA build of torch",),
        )
    return device


def _moved(batch: TrainBatch, device: torch.device) -> TrainBatch:
    tensors = {
        field.name: value.to(device)
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, samples=packed.to(batch.samples, device), **tensors)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]
