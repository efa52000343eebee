"""Text to tokens and back, with the tokenizer of one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from rlinf_graph.ir.batches import Prompt
from rlinf_graph.ir.diagnostic import fail


@dataclass(frozen=True)
class Text:
    """A model's tokenizer.

    Attributes:
        model: the model's name, for messages.
        tokenizer: of transformers.
        ends: tokens that end a response.
    """

    model: str
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]

    def encode(self, prompts: list[Prompt]) -> list[list[int]]:
        """Tokens of prompts: plain texts as they are, messages through the chat template.

        Raises:
            CompileError: RG0503, for messages without a chat template and for a prompt without
                tokens.
        """
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(self._ids(texts) if texts else [])
        found = [next(encoded) if isinstance(p, str) else self._chat(p) for p in prompts]
        for prompt, tokens in zip(prompts, found, strict=True):
            if not tokens:
                raise fail(
                    "RG0503",
                    f"the tokenizer of `{self.model}` makes no tokens of the prompt {prompt!r}",
                    help=("leave empty prompts out, or use a tokenizer that adds a first token",),
                )
        return found

    def completion(self, text: str) -> list[int]:
        """Tokens of an answer and the end token, where the tokenizer has one."""
        end = cast("int | None", self.tokenizer.eos_token_id)
        tokens = cast("list[int]", self.tokenizer(text, add_special_tokens=False).input_ids)
        return [*tokens, *([] if end is None else [end])]

    def conversation(self, prompt: Prompt, response: str) -> list[int]:
        """Tokens of a prompt and its answer, through the chat template where there is one."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not self.tokenizer.chat_template:
            return self.encode([plain(prompt) + response])[0]
        return self._template([*messages, {"role": "assistant", "content": response}])

    def decode(self, sequences: list[list[int]], *, special: bool = False) -> list[str]:
        """Texts of token sequences, special tokens left out unless asked for."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=not special)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts).input_ids  # type: ignore[return-value]  lists, for a list

    def _chat(self, messages: list[dict[str, str]]) -> list[int]:
        if not self.tokenizer.chat_template:
            raise fail(
                "RG0503",
                f"the tokenizer of `{self.model}` has no chat template, and a prompt is a list of "
                "messages",
                help=("use an instruction-tuned model, or a data set whose prompts are texts",),
            )
        return self._template(messages, add_generation_prompt=True)

    def _template(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        return self.tokenizer.apply_chat_template(  # type: ignore[return-value]  of its options
            messages, tokenize=True, return_dict=False, **options
        )


def plain(prompt: Prompt) -> str:
    """A prompt as text; messages one after another, without their roles."""
    return prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)
