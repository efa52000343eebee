"""One more turn of a dialog: whose tokens are whose, and what they were drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlinf_graph import rl
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Dialogs, Prompts
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.engine import Key, Sampling
from tests.engines.torch.conftest import write_model
from tests.engines.torch.test_generation import plain_logprobs, same

TEXTS = ("1+2=", "37+48=", "5=", "123+456=", "a b c", "9+9=")
SAMPLING = Sampling(max_tokens=7)
EOS = 2

Make = Callable[..., TorchEngine]
Ask = Callable[..., Prompts]


def told(dialogs: Dialogs, turn: int) -> Dialogs:
    """A tool has answered: to each dialog something else, of another length, or nothing."""
    texts = [f"={i}+{turn}"[: 1 + i % 4] if i % 5 else "" for i in dialogs.index.tolist()]
    return dialogs.replace(answers=texts)


def talk(
    engine: TorchEngine, asked: Prompts, sampling: Sampling = SAMPLING, turns: int = 3
) -> list[Dialogs]:
    """The dialogs after each turn, versions counted from 4, with answers of tools in between."""
    now, seen = rl.open_dialogs(asked, samples=2), list[Dialogs]()
    for turn in range(turns):
        now = engine.reply(now, sampling, Key(0, "reply", 5, (turn,)), 4 + turn)
        seen.append(now)
        now = told(now, turn)
    return seen


def rows(dialogs: Dialogs, name: str) -> list[list[Any]]:
    """A packed field, dialog by dialog."""
    parts: Sequence[torch.Tensor] = getattr(dialogs, name).split(dialogs.lengths.tolist())
    return [part.tolist() for part in parts]


def test_only_the_policys_own_tokens_are_its_own(make: Make, ask: Ask) -> None:
    engine = make()
    asked = ask(*TEXTS, first=10)
    seen = talk(engine, asked)
    whole = seen[-1]
    assert whole.index.tolist() == list(range(20, 32))
    assert whole.group.tolist() == [10 + i // 2 for i in range(12)]
    for row in range(12):
        expected: list[tuple[int, int]] = []
        heard = engine.tokenize(TEXTS[row // 2])
        for turn, dialogs in enumerate(seen):
            expected += [(token, -1) for token in heard]
            said = rows(dialogs, "tokens")[row][len(expected) :]
            assert engine._reader.decode([said]) == [dialogs.responses[row]]
            assert bool(dialogs.finished[row]) == (said[-1] == EOS)
            expected += [(token, 4 + turn) for token in said]
            answer = told(dialogs, turn).answers[row]
            heard = engine.tokenize(answer) if answer else []
        own = [version >= 0 for _token, version in expected]
        assert rows(whole, "tokens")[row] == [token for token, _version in expected]
        assert rows(whole, "versions")[row] == [version for _token, version in expected]
        assert rows(whole, "mask")[row] == own
        logprobs = rows(whole, "logprobs")[row]
        assert [value < 0 for value in logprobs] == own
    assert whole.prompt_lengths.tolist() == [len(TEXTS[i // 2]) for i in range(12)]
    assert whole.turns.tolist() == [3] * 12
    assert whole.answers == [""] * 12
    assert 0 < sum(d.finished.sum() for d in seen) < 36, "the test wants both kinds"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_logprobs_are_those_of_the_whole_sequence(
    make: Make, ask: Ask, dtype: str, tolerance: float
) -> None:
    engine = make(dtype=dtype)
    made = talk(engine, ask(*TEXTS), Sampling(max_tokens=7, temperature=0.7))[-1]
    found = engine.logprobs(made)
    assert made.logprobs.dtype == found.dtype == getattr(torch, dtype)
    assert made.logprobs[made.mask].std() > 0.1
    torch.testing.assert_close(made.logprobs, found, rtol=0, atol=tolerance)
    made = talk(engine, ask(*TEXTS))[-1]
    torch.testing.assert_close(made.logprobs, plain_logprobs(engine, made), rtol=0, atol=tolerance)


@pytest.mark.parametrize("model_type", ["qwen2", "mistral"])
def test_a_dialog_does_not_depend_on_the_others(
    make: Make, ask: Ask, tmp_path: Path, model_type: str
) -> None:
    settings = {"sliding_window": 4} if model_type == "mistral" else {}
    engine = make(path=write_model(tmp_path / model_type, model_type, **settings))
    asked = ask(*TEXTS)
    together = talk(engine, asked)[-1]
    order = [4, 1, 5, 0, 3, 2]
    shuffled = talk(engine, packed.select(asked, order))[-1]
    same(packed.in_order(shuffled), together)
    alone = [talk(engine, packed.select(asked, [row]))[-1] for row in range(6)]
    same(packed.concat(alone), together)


def test_turns_and_keys_differ(make: Make, ask: Ask) -> None:
    engine = make()
    begun = rl.open_dialogs(ask(*TEXTS))
    keys = [Key(0, "reply", 5, (0,)), Key(0, "reply", 5, (1,)), Key(0, "reply", 6, (0,))]
    first, second, third = (engine.reply(begun, SAMPLING, key, 0).responses for key in keys)
    assert first != second != third != first


def test_dialogs_that_are_done_stay_where_they_are(make: Make, ask: Ask) -> None:
    engine = make()
    (first,) = talk(engine, ask(*TEXTS), turns=1)
    half = told(first, 0).replace(done=torch.arange(12) % 3 == 1)
    made = engine.reply(half, SAMPLING, Key(0, "reply", 5, (1,)), 5)
    all_going = engine.reply(told(first, 0), SAMPLING, Key(0, "reply", 5, (1,)), 5)
    assert made.index.tolist() == list(range(12))
    over = (torch.arange(12) % 3 == 1).nonzero()[:, 0].tolist()
    same(packed.select(made, over), packed.select(half, over))
    going = [row for row in range(12) if row not in over]
    same(packed.select(made, going), packed.select(all_going, going))
    assert made.turns.tolist() == [1 if row in over else 2 for row in range(12)]
    ended = half.replace(done=torch.ones(12, dtype=torch.bool))
    assert engine.reply(ended, SAMPLING, Key(0, "reply", 5, (1,)), 5) is ended


def test_no_dialogs_at_all(make: Make, ask: Ask) -> None:
    none = packed.select(rl.open_dialogs(ask(*TEXTS)), [])
    assert len(make().reply(none, SAMPLING, Key(0, "reply", 0), 0)) == 0


def test_a_stop_text_ends_a_turn(make: Make, ask: Ask) -> None:
    sampling = Sampling(max_tokens=30, stop=("1", "2", "3"))
    (made,) = talk(make(), ask(*TEXTS), sampling, turns=1)
    stopped = [text for text in made.responses if text[-1:] in ("1", "2", "3")]
    assert len(stopped) > 6
    assert not any(mark in text[:-1] for text in made.responses for mark in sampling.stop)
    assert made.finished[[t in stopped for t in made.responses]].all()


WRITTEN = (
    "{{ {'user': 'b', 'assistant': 'a', 'tool': 'c'}[m.role] }}{{ m.content }}<eos>-{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)
CHAT = "{% for m in messages %}" + WRITTEN
NO_TOOL = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('role') }}{% endif %}"
    + WRITTEN
)


@pytest.mark.parametrize(("template", "role"), [(CHAT, "tool"), (NO_TOOL, "user")])
def test_messages_go_through_the_chat_template(
    make: Make, ask: Ask, template: str, role: str
) -> None:
    """The tokens are those of the conversation so far, written by the template as one."""
    engine = make()
    tokenizer = engine._reader.tokenizer
    tokenizer.chat_template = template
    conversations = [[{"role": "user", "content": text}] for text in TEXTS]
    asked = ask(*TEXTS).replace(prompts=conversations)
    first, second = talk(engine, asked, Sampling(max_tokens=30), turns=2)
    assert int(first.finished.sum()) > 0
    answers = told(first, 0).answers
    for row, tokens in enumerate(rows(second, "tokens")):
        said = rows(first, "tokens")[row][int(first.prompt_lengths[row]) :]
        (text,) = engine._reader.decode([said[: len(said) - (said[-1] == EOS)]], special=True)
        messages = [
            *conversations[row // 2],
            {"role": "assistant", "content": text},
            {"role": role, "content": answers[row]},
        ]
        written = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, add_generation_prompt=True
        )
        assert tokens[: len(written)] == written
        assert not any(rows(second, "mask")[row][len(rows(first, "tokens")[row]) : len(written)])
        assert engine._reader.decode([tokens[len(written) :]]) == [second.responses[row]]


def test_a_template_without_tools_is_refused(make: Make, ask: Ask) -> None:
    engine = make()
    engine._reader.tokenizer.chat_template = "{{ messages[0].content }}"
    asked = ask("1").replace(prompts=[[{"role": "user", "content": "1+1"}]])
    with pytest.raises(CompileError, match="has no place for what a tool answers"):
        talk(engine, asked, turns=2)
