"""The vLLM engine: a language model that samples, in one process or in one of a replica's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from rlinf_graph.engines.torch.device import device_of
from rlinf_graph.engines.torch.loading import load_model, load_text
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.engines.torch.weights import weights_of
from rlinf_graph.engines.vllm.answers import Answer, cut_answers, gone_on, new_answers, responses
from rlinf_graph.engines.vllm.api import get_world_group
from rlinf_graph.engines.vllm.capabilities import CAPABILITIES
from rlinf_graph.engines.vllm.making import make, skeleton
from rlinf_graph.engines.vllm.sampler import Sampler
from rlinf_graph.engines.vllm.turns import Turns
from rlinf_graph.engines.vllm.weights import Weights
from rlinf_graph.ir.batches import Prompt, Prompts, Rollouts
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.capabilities import Capabilities
from rlinf_graph.nodes.engine import Key, Part, Sampling
from rlinf_graph.nodes.registry import Member

TAGS: dict[Part, str] = {"weights": "weights", "cache": "kv_cache"}
"""What vLLM calls the parts that can sleep."""


class VllmEngine:
    """A model that samples with vLLM.

    One thread samples; `abort`, `update_weights`, `sleep` and `wake` may be called by others, and
    happen between two tokens.

    Args:
        model: its `path` is a hub name or a folder; random weights are those of the torch engine.
        seed: of the run; decides random weights, together with the model's name.
        device: as in torch; the one that this process uses.
        dtype: `float32` or `bfloat16`; `auto` is bfloat16 on GPUs.
        trainable: has to be false.
        member: which process of a replica this is.

    Raises:
        CompileError: RG0503, for what is not there, and what vLLM cannot do.
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
        if trainable:
            message = f"`{model.name}` is to be trained, and vLLM only samples"
            raise fail("RG0503", message, model.span, help=('rl.Model("…", train="torch")',))
        self.definition, self.version = model, 0
        self.device = device_of(model, device)
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        bare = skeleton(model)
        self._text = _text_of(model)
        self._engine = make(model, type(bare).__name__, self.device, dtype, member)
        alone = member is None or member.settings.parallel.devices == 1
        self._turns = Turns(None if alone else _largest)
        self._weights = Weights(self._engine, bare, model.name)
        whole = self._weights.require_whole
        self._sampler = Sampler(self._engine, self._text, self._turns, whole)
        self._asleep: set[Part] = set()
        if model.weights == "random":
            drawn = load_model(model, seed, getattr(torch, dtype))
            self.update_weights(weights_of(drawn).items())

    def generate(self, prompts: Prompts, sampling: Sampling, key: Key, version: int) -> Rollouts:
        """Sample responses, each with a seed of `key` and its number.

        A seed decides a response where vLLM computes the same: a batch of another size, or another
        device, may round differently and draw another token.

        Raises:
            CompileError: RG0503, for prompts that the tokenizer cannot read or that leave no room,
                and temperatures that vLLM does not do.
            RuntimeError: it is sampling already, sleeps, or an update broke off.
        """
        answers = self._asked(prompts, sampling, key)
        told = [a for part in self._sampler.run(answers, sampling, version) for a in part]
        told.sort(key=lambda answer: (answer.row, answer.number))
        return self._responses(prompts, told, sampling)

    def stream(
        self, prompts: Prompts, sampling: Sampling, key: Key, version: int
    ) -> Iterator[Rollouts]:
        """As `generate`, in parts: responses as they finish, with `keep` those of a prompt."""
        answers = self._asked(prompts, sampling, key)
        for part in self._sampler.run(answers, sampling, version):
            yield self._responses(prompts, part, sampling)

    def resume(self, rollouts: Rollouts, sampling: Sampling, key: Key, version: int) -> Rollouts:
        """Go on with responses that `abort` cut.

        Raises:
            CompileError: RG0503, and RuntimeError, as `generate`.
        """
        answers = cut_answers(rollouts, key)
        for _ in self._sampler.run(answers, sampling, version):
            pass
        return gone_on(rollouts, answers, self._text)

    def abort(self) -> None:
        """End what another thread samples; responses come back as far as they are."""
        self._sampler.stop()

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int = 0) -> None:
        """Overwrite weights in place, empty the cache, go on with what is being sampled.

        Weights come whole in every process of a replica, and a decoder layer whole or not at all.

        Raises:
            CompileError: RG0604, for names or shapes of another model, and layers in part; then
                nothing can be sampled until a complete update has come.
        """
        with self._turns.between():
            self._wake({"weights"})
            self._engine.sleep(level=0, mode="keep")  # waits for what the device still computes
            try:
                self._weights.update(weights)
            finally:
                self._engine.reset_prefix_cache(reset_running_requests=True)
                self._engine.wake_up(["scheduling"])
            self._sampler.mark(version)
            self.version = version

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt; a list of messages goes through the chat template."""
        return self._text.encode([prompt])[0]

    def sleep(self, *parts: Part) -> None:
        """Take weights to the host's memory and give the cache's up; nothing leaves a CPU.

        What is being sampled waits, and begins again from its tokens so far.
        """
        with self._turns.between():
            wanted = self._asleep | set(parts or TAGS)
            if wanted == self._asleep:
                return
            self._wake({"weights"})  # while they sleep, vLLM puts nothing else to sleep
            self._engine.sleep(level=1, mode="keep")
            self._asleep = set(TAGS)
            self._wake(set(TAGS) - wanted)

    def wake(self, *parts: Part) -> None:
        """Bring parts back, all without arguments."""
        with self._turns.between():
            self._wake(set(parts or TAGS))

    def load(self) -> None:
        """Bring everything back onto the device."""
        self.wake()

    def offload(self) -> None:
        """Free the device."""
        self.sleep()

    def _wake(self, parts: set[Part]) -> None:
        if found := sorted(parts & self._asleep):
            self._engine.wake_up([TAGS[part] for part in found])
            self._asleep -= parts
        self._turns.asleep = bool(self._asleep)

    def _asked(self, prompts: Prompts, sampling: Sampling, key: Key) -> list[Answer]:
        return new_answers(prompts, self._text.encode(prompts.prompts), sampling, key)

    def _responses(self, prompts: Prompts, answers: list[Answer], sampling: Sampling) -> Rollouts:
        return responses(prompts, answers, sampling, self._text)


def _text_of(model: ModelDef) -> Text:
    text = load_text(model)
    if text is None:
        raise fail("RG0503", f"`{model.name}` has no tokenizer: {model.path}", model.span)
    return text


def _largest(number: int) -> int:
    """The largest of the numbers that the processes of this replica give."""
    found = torch.tensor([number])
    group = get_world_group().cpu_group
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=group)
    return int(found)
