"""The torch engine: a model of transformers, or a small network, in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlinf_graph.engines.torch import acting, dialogs, forward, shared, weights
from rlinf_graph.engines.torch.capabilities import CAPABILITIES
from rlinf_graph.engines.torch.device import device_of, dtype_of, moved
from rlinf_graph.engines.torch.generation import generate
from rlinf_graph.engines.torch.heads import Scalar
from rlinf_graph.engines.torch.loading import load
from rlinf_graph.engines.torch.network import Network, is_small
from rlinf_graph.engines.torch.resumption import resume
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.engines.torch.training import Training
from rlinf_graph.ir.batches import (
    Actions,
    Dialogs,
    Observations,
    Prompt,
    Prompts,
    Rollouts,
    Transitions,
)
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.capabilities import Capabilities
from rlinf_graph.nodes.engine import Key, Outputs, Part, Sampling, Shard, TrainBatch
from rlinf_graph.nodes.loss import Loss
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW
from rlinf_graph.nodes.registry import Member


class TorchEngine:
    """A model on one device.

    Args:
        model: what to load; see `rlinf_graph.engines.torch.loading`.
        seed: of the run; decides random weights, together with the model's name.
        device: `auto` (a GPU if there is one), or as in torch.
        dtype: `auto` (as the model says; else bfloat16 on GPUs, float32 on CPUs and for small
            networks), `float64`, `float32` or `bfloat16`.
        trainable: whether gradients and optimizer states may be asked for.

    Raises:
        CompileError: RG0503, for a model or a device that is not there.
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
        member: Member | None = None,  # noqa: ARG002  a model is whole on each device
    ) -> None:
        self.definition = model
        self.version = 0
        self.device = device_of(model, device)
        named = dtype if dtype != "auto" else model.dtype
        self.dtype = dtype_of(named, self.device, small=is_small(model.path))
        loaded, self._text = load(model, seed, self.dtype)
        self.model = loaded.requires_grad_(trainable)
        self._training: Training | None = None
        self._noise = acting.Noise()
        self._cut = threading.Event()
        self.load()
        if trainable:
            self._training = Training(self.model, model.name)

    def generate(self, prompts: Prompts, sampling: Sampling, key: Key, version: int) -> Rollouts:
        """Sample responses with keyed noise; at temperature 0 log-probabilities are 0.

        Raises:
            CompileError: RG0503, for another head than `lm` and for prompts that the tokenizer
                cannot read.
        """
        self._cut.clear()
        model, cut = self._language_model(), self._cut.is_set
        return generate(model, self._reader, prompts, sampling, key, version, cut)

    def stream(
        self, prompts: Prompts, sampling: Sampling, key: Key, version: int
    ) -> Iterator[Rollouts]:
        """All responses in one part: a batch is decoded to its end."""
        yield self.generate(prompts, sampling, key, version)

    def abort(self) -> None:
        """End what another thread generates, before its next token."""
        self._cut.set()

    def resume(self, rollouts: Rollouts, sampling: Sampling, key: Key, version: int) -> Rollouts:
        """Go on with responses that `abort` cut.

        Raises:
            CompileError: RG0503, for another head than `lm`.
        """
        self._cut.clear()
        model, cut = self._language_model(), self._cut.is_set
        return resume(model, self._reader, rollouts, sampling, key, version, cut)

    def act(self, observations: Observations, key: Key, version: int, *, greedy: bool) -> Actions:
        """Choose an action in each environment with keyed noise, or without any if greedy.

        Raises:
            CompileError: RG0503, for a model that is no small network with head `action`.
        """
        network = self._network("action")
        return acting.act(network, self._noise, observations, key, version, greedy=greedy)

    def step_values(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """State values along steps, packed, one more than the steps; and where truncated the last.

        Raises:
            CompileError: RG0503, for a model that is no small network with head `value`.
        """
        return acting.step_values(self._network("value"), transitions)

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

    def accumulate(self, batches: Sequence[TrainBatch], loss: Loss, metrics: Metrics) -> float:
        """Add the gradients of the loss's sums to those held; the sum of its weights.

        Raises:
            CompileError: RG0503, for a loss that reads what the model's head does not say.
        """
        return sum(self._accumulate(batch, loss, metrics) for batch in batches)

    def _accumulate(self, batch: TrainBatch, loss: Loss, metrics: Metrics) -> float:
        acts = isinstance(batch.samples, Transitions)
        policy = "action" if acts else "lm"
        self._require(policy if loss.reads == "logprobs" else "value", small=acts)
        training = self._trained()
        batch = moved(batch, self.device)
        outputs = self._outputs(batch, entropy=loss.entropy)
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

    def shards(self) -> Iterator[Shard]:
        """All weights, each whole."""
        for name, values in self.weights().items():
            shape = tuple(values.shape)
            yield Shard(name, shape, (0,) * len(shape), values)

    def update_weights(self, weights_: Iterable[tuple[str, Tensor]], version: int = 0) -> None:
        """Overwrite weights in place; those not given stay.

        Raises:
            CompileError: RG0604, for a name that the model does not have, and for another shape.
        """
        weights.overwrite(self.model, self.definition.name, weights_)
        if self._training is not None:
            self._training.adopt()
        self.version = version

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
        """Write a folder that transformers' `from_pretrained` loads, tokenizer included.

        A small network's is a `config.json` and `model.safetensors`, which this engine loads.
        """
        weights.save(self.model, self._text, path)

    def sleep(self, *parts: Part) -> None:
        """Move weights to the CPU; no cache outlives what it was made for."""
        if not parts or "weights" in parts:
            self.offload()

    def wake(self, *parts: Part) -> None:
        """Bring weights onto the device."""
        if not parts or "weights" in parts:
            self.load()

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

    def _outputs(self, batch: TrainBatch, *, entropy: bool) -> Outputs:
        if isinstance(batch.samples, Transitions):
            return acting.outputs(cast("Network", self.model), batch.samples, entropy=entropy)
        whole = cast("PreTrainedModel | Scalar", self.model)
        if isinstance(whole, Scalar) or not isinstance(batch.samples, Rollouts):
            return forward.outputs(whole, batch.samples, entropy=entropy)
        prompts = shared.repeated_prompts(batch.samples) if shared.shares(whole) else None
        if prompts is None:
            return forward.outputs(whole, batch.samples, entropy=entropy)
        return shared.outputs(whole, batch.samples, prompts, entropy=entropy)

    def _language_model(self) -> PreTrainedModel:
        self._require("lm")
        return cast("PreTrainedModel", self.model)

    def _scalar(self, head: str) -> Scalar:
        self._require(head)
        return cast("Scalar", self.model)

    def _network(self, head: str) -> Network:
        self._require(head, small=True)
        return cast("Network", self.model)

    def _require(self, head: str, *, small: bool = False) -> None:
        name, held, has = (
            self.definition.name,
            isinstance(self.model, Network),
            self.definition.head,
        )
        if has == head and held is small:
            return
        path, message = self.definition.path, f"`{name}` has head `{has}`; this needs `{head}`"
        if held is not small:
            kinds = {True: "a small network", False: "a model of transformers"}
            path = "mlp:64x64" if small else "Qwen/Qwen2.5-0.5B"
            message = (
                f"`{name}` is {kinds[held]} with head `{has}`; this needs {kinds[small]} with "
                f"head `{head}`"
            )
        help_text = (f'rl.Model("{path}", head="{head}")',)
        raise fail("RG0503", message, self.definition.span, help=help_text)

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

    def reply(self, dialogs_: Dialogs, sampling: Sampling, key: Key, version: int) -> Dialogs:
        """Let the policy speak once more in each dialog, after reading `answers`.

        Raises:
            CompileError: RG0503, as `generate`, and for a chat template that shows no tool.
        """
        model = self._language_model()
        return dialogs.reply(model, self._reader, dialogs_, sampling, key, version)
