"""Sampling step by step: responses that end are told at once, weights may change in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rlinf_graph.engines.torch.text import Text
from rlinf_graph.engines.vllm.answers import Answer, Groups
from rlinf_graph.engines.vllm.api import RequestOutputKind, SamplingParams
from rlinf_graph.engines.vllm.turns import Turns
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.nodes.engine import Sampling

COLDEST = 0.01
"""vLLM draws at this temperature where a lower one is asked for, except 0."""
TAIL = 4
"""Tokens looked at for a stop text beyond its bytes: one character may take that many."""


class Sampler:
    """What asks a vLLM engine for tokens.

    Args:
        engine: vLLM's `LLMEngine`.
        text: the model's tokenizer and end tokens.
        turns: decides when steps are taken.
        check: called before every step; raises what ends the sampling.
    """

    def __init__(self, engine: Any, text: Text, turns: Turns, check: Callable[[], None]) -> None:
        self._engine, self._text, self._turns, self._check = engine, text, turns, check
        self._room = int(engine.vllm_config.model_config.max_model_len)
        self._version = 0
        self._going = False

    def stop(self) -> None:
        """End what is being sampled before its next step; nothing before its first."""
        with self._turns.between():
            self._going = False

    def mark(self, version: int) -> None:
        """Mark the tokens that are drawn from now on; called between two steps."""
        self._version = version

    def run(
        self, answers: list[Answer], sampling: Sampling, version: int
    ) -> Iterator[list[Answer]]:
        """Draw until all have ended; those of a step together, or with `keep` a prompt's together.

        Raises:
            CompileError: RG0503, for a temperature or a prompt that cannot be sampled from.
            RuntimeError: the engine is sampling already, sleeps, or has weights of two models.
        """
        requests = [self._request(answer, sampling) for answer in answers]
        groups = Groups(answers, sampling)
        live: dict[str, Answer] = {}
        self._turns.begin()
        try:
            with self._turns.step():
                self._check()
                self._version, self._going = version, True
                for number, (answer, request) in enumerate(zip(answers, requests, strict=True)):
                    if request is not None:
                        live[str(number)] = answer
                        prompt = {"prompt_token_ids": [*answer.told, *answer.tokens]}
                        self._engine.add_request(str(number), prompt, request)
            over = [a for a, request in zip(answers, requests, strict=True) if request is None]
            yield from self._told(groups, over)
            going = True  # as it is inside a step: the same in all processes
            while live and going:
                with self._turns.step():
                    going = self._going
                    over = self._step(live, sampling, groups) if going else []
                yield from self._told(groups, over)
            yield from self._told(groups, list(live.values()))
        finally:
            self._turns.end(lambda: self._engine.abort_request(list(live)))

    def _told(self, groups: Groups, over: list[Answer]) -> Iterator[list[Answer]]:
        for part in groups.told(over):
            with self._turns.rest():
                yield part

    def _step(self, live: dict[str, Answer], sampling: Sampling, groups: Groups) -> list[Answer]:
        """Let each live response have one more token; take away and return those that end."""
        self._check()
        over: list[str] = []
        heard: list[str] = []
        for output in self._engine.step():
            name, said = output.request_id, output.outputs[0]
            tokens = list(said.token_ids)
            logprobs = said.logprobs.logprobs if sampling.temperature else [0.0] * len(tokens)
            live[name].say(tokens, logprobs, self._version)
            live[name].finished = said.finish_reason == "stop"
            if said.finish_reason not in (None, "stop", "length"):
                raise fail("RG0503", f"vLLM gave up a response: {said.finish_reason}")
            heard.append(name)
            if said.finish_reason is not None:
                over.append(name)
        unended = [name for name in heard if not live[name].finished]
        stopped = self._at_stop_texts([live[name] for name in unended], sampling.stop)
        for name, ended in zip(unended, stopped, strict=True):
            live[name].finished = ended
        given_up = [
            name
            for name, answer in live.items()
            if name not in over and (answer.finished or groups.late(answer))
        ]
        self._engine.abort_request(given_up)
        return [live.pop(name) for name in (*over, *given_up)]

    def _at_stop_texts(self, answers: list[Answer], stop: tuple[str, ...]) -> list[bool]:
        """Whether the ends of responses contain a stop text, special tokens spelled out."""
        if not stop or not answers:
            return [False] * len(answers)
        window = max(len(text.encode()) for text in stop) + TAIL
        tails = self._text.decode([answer.tokens[-window:] for answer in answers], special=True)
        return [any(text in tail for text in stop) for tail in tails]

    def _request(self, answer: Answer, sampling: Sampling) -> Any:
        """How vLLM is asked to go on with a response; None where it has ended.

        Raises:
            CompileError: RG0503, for a temperature that vLLM changes, and a prompt that leaves no
                room.
        """
        if 0 < sampling.temperature < COLDEST:
            raise fail(
                "RG0503",
                f"vLLM samples at no temperature below {COLDEST}, and {sampling.temperature} is "
                "asked for",
                help=(f"temperature=0, which is greedy, or {COLDEST} and more",),
            )
        if len(answer.told) >= self._room:
            raise fail(
                "RG0503",
                f"a prompt of {len(answer.told)} tokens leaves no room for a response: the model "
                f"reads {self._room} tokens",
                help=("leave long prompts out of the data set, or choose another model",),
            )
        left = min(sampling.max_tokens, self._room - len(answer.told)) - len(answer.tokens)
        if answer.finished or left < 1:
            return None
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=left,
            seed=answer.seed if sampling.temperature else None,
            logprobs=0 if sampling.temperature else None,
            flat_logprobs=True,
            ignore_eos=True,  # among the end tokens, where it is one
            stop_token_ids=list(self._text.ends),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
