from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlinf_graph.engines.torch import decoding
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.engine import Key, Sampling
from tests.engines.torch.conftest import write_model

KEY = Key(0, "rollout policy", 5)
SAMPLING = Sampling(samples=3, max_tokens=12)
TEXTS = ("1+2=", "37+48=", "5=", "123+456=", "a b c", "9+9=")

Make = Callable[..., TorchEngine]
Ask = Callable[..., Prompts]


def same(a: Rollouts, b: Rollouts) -> None:
    for name in ("index", "group", "lengths", "tokens", "mask", "versions", "prompt_lengths",
                 "finished"):  # fmt: skip
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name in ("prompts", "responses", "columns"):
        assert getattr(a, name) == getattr(b, name)
    torch.testing.assert_close(a.logprobs, b.logprobs, rtol=0, atol=1e-9)


def plain_logprobs(engine: TorchEngine, rollouts: Rollouts) -> torch.Tensor:
    """One sequence at a time, through the whole model."""
    parts = []
    for tokens, mask in zip(
        rollouts.tokens.split(rollouts.lengths.tolist()),
        rollouts.mask.split(rollouts.lengths.tolist()),
        strict=True,
    ):
        with torch.no_grad():
            logits = engine.model(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        spread = torch.log_softmax(logits, dim=-1)
        found = spread.gather(1, tokens[1:, None])[:, 0]
        parts.append(torch.cat([found.new_zeros(1), found]) * mask)
    return torch.cat(parts)


def test_fields_of_rollouts(make: Make, ask: Ask) -> None:
    made = make().generate(ask(*TEXTS, first=10), SAMPLING, KEY, version=4)
    count = len(TEXTS) * 3
    assert made.index.tolist() == list(range(30, 30 + count))
    assert made.group.tolist() == [10 + i // 3 for i in range(count)]
    assert made.prompt_lengths.tolist() == [len(TEXTS[i // 3]) for i in range(count)]
    assert made.prompts == [TEXTS[i // 3] for i in range(count)]
    assert made.columns[4] == {"truth": TEXTS[1]}
    assert made.mask.sum() == made.response_lengths.sum()
    assert torch.equal(made.versions, torch.where(made.mask, 4, -1))
    assert not made.logprobs[~made.mask].any()
    assert (made.logprobs[made.mask] < 0).all()
    for tokens, length, finished, text in zip(
        made.tokens.split(made.lengths.tolist()), made.prompt_lengths.tolist(),
        made.finished.tolist(), made.responses, strict=True,
    ):  # fmt: skip
        response = tokens[length:].tolist()
        assert (response[-1] == 2) == finished
        assert finished or len(response) == 12
        assert 2 not in response[:-1]
        assert len(text) == sum(token > 2 for token in response)
    assert 0 < made.finished.sum() < count, "the test wants both kinds"


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gpt2", "gemma2", "mistral"])
def test_sampling_does_not_depend_on_the_batch(
    make: Make, ask: Ask, tmp_path: Path, model_type: str
) -> None:
    settings = {"sliding_window": 4} if model_type in ("gemma2", "mistral") else {}
    if model_type == "gpt2":
        settings = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    engine = make(path=write_model(tmp_path / model_type, model_type, **settings))
    asked = ask(*TEXTS)
    together = engine.generate(asked, SAMPLING, KEY, 0)
    rows = [4, 1, 5, 0, 3, 2]
    shuffled = engine.generate(packed.select(asked, rows), SAMPLING, KEY, 0)
    same(packed.in_order(shuffled), together)
    alone = [engine.generate(packed.select(asked, [row]), SAMPLING, KEY, 0) for row in range(6)]
    same(packed.concat(alone), together)
    expected = plain_logprobs(engine, together)
    torch.testing.assert_close(together.logprobs, expected, rtol=0, atol=1e-9)


def test_dropping_ended_sequences_changes_nothing(
    make: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sampling = make(), replace(SAMPLING, max_tokens=40)
    dropped: list[int] = []
    drop = decoding.Live.drop_ended

    def counted(live: decoding.Live) -> torch.Tensor:
        dropped.append(len(live.rows))
        return drop(live)

    monkeypatch.setattr(decoding.Live, "drop_ended", counted)
    made = engine.generate(ask(*TEXTS), sampling, KEY, 0)
    assert len(dropped) > 1
    torch.testing.assert_close(made.logprobs, plain_logprobs(engine, made), rtol=0, atol=1e-9)


def test_logprobs_are_those_of_a_plain_forward(make: Make, ask: Ask) -> None:
    engine = make()
    made = engine.generate(ask(*TEXTS), SAMPLING, KEY, 0)
    found = engine.logprobs(made)
    torch.testing.assert_close(found, made.logprobs, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, plain_logprobs(engine, made), rtol=0, atol=1e-9)


def test_another_key_gives_other_tokens(make: Make, ask: Ask) -> None:
    engine = make()
    first = engine.generate(ask(*TEXTS), SAMPLING, KEY, 0)
    for key in (Key(1, KEY.node, 5), Key(0, "rollout", 5), Key(0, KEY.node, 6)):
        assert engine.generate(ask(*TEXTS), SAMPLING, key, 0).responses != first.responses


def test_greedy_is_that_of_transformers(make: Make, ask: Ask) -> None:
    engine = make()
    made = engine.generate(ask(*TEXTS), Sampling(max_tokens=12, temperature=0), KEY, 0)
    assert not made.logprobs.any()
    for row, tokens in enumerate(made.tokens.split(made.lengths.tolist())):
        length = int(made.prompt_lengths[row])
        expected = engine.model.generate(
            tokens[None, :length],
            attention_mask=torch.ones(1, length),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )
        assert tokens.tolist() == expected[0].tolist()


def test_logprobs_after_temperature_and_top_p(make: Make, ask: Ask) -> None:
    engine = make()
    sampling = Sampling(samples=2, max_tokens=8, temperature=0.7, top_p=0.6)
    made = engine.generate(ask(*TEXTS), sampling, KEY, 0)
    tokens = made.tokens[: int(made.lengths[0])]
    start = int(made.prompt_lengths[0])
    with torch.no_grad():
        logits = engine.model(input_ids=tokens[None]).logits[0]
    for position in range(start, len(tokens)):
        scaled = (logits[position - 1] / 0.7).softmax(dim=-1)
        ordered = sorted(scaled.tolist(), reverse=True)
        kept = next(n for n in range(1, 21) if sum(ordered[:n]) >= 0.6)
        assert scaled[tokens[position]] >= ordered[kept - 1]
        expected = scaled[tokens[position]].log() - torch.tensor(sum(ordered[:kept])).log()
        assert abs(float(made.logprobs[position] - expected)) < 1e-6


def test_scores_are_taken_at_the_temperature_of_the_rollout(make: Make, ask: Ask) -> None:
    engine = make()
    sampling = Sampling(samples=2, max_tokens=8, temperature=0.7)
    made = engine.generate(ask(*TEXTS), sampling, KEY, 0)
    assert made.temperature.tolist() == [0.7] * len(made)
    assert torch.allclose(engine.logprobs(made), made.logprobs, rtol=0, atol=1e-9)
    cool = made.replace(temperature=torch.ones_like(made.temperature))
    assert not torch.allclose(engine.logprobs(cool), made.logprobs, atol=1e-3)


def test_stop_texts_end_a_response(make: Make, ask: Ask) -> None:
    engine = make()
    free = engine.generate(ask(*TEXTS), SAMPLING, KEY, 0)
    longest = sorted(free.responses, key=len)[-2:]
    stops = (longest[0][1:3], longest[1][4])
    made = engine.generate(ask(*TEXTS), replace(SAMPLING, stop=stops), KEY, 0)
    for before, after, finished in zip(
        free.responses, made.responses, made.finished.tolist(), strict=True
    ):
        ends = [before.index(s) + len(s) for s in stops if s in before]
        assert after == before[: min(ends, default=None)]
        assert finished or not ends


def test_end_tokens_of_the_generation_settings(make: Make, ask: Ask, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")
    free = make(path=path).generate(ask(*TEXTS), SAMPLING, KEY, 0)
    token = int(free.tokens[free.mask.nonzero()[0, 0]])
    (path / "generation_config.json").write_text(f'{{"eos_token_id": [2, {token}]}}')
    made = make(path=path).generate(ask(*TEXTS), SAMPLING, KEY, 0)
    assert int(made.response_lengths[0]) == 1
    assert bool(made.finished[0])


def test_no_prompts_give_no_rollouts(make: Make, ask: Ask) -> None:
    engine = make()
    made = engine.generate(ask(), SAMPLING, KEY, 0)
    assert len(made) == 0
    assert engine.logprobs(made).shape == (0,)


def test_chat_messages_go_through_the_template(make: Make, ask: Ask) -> None:
    engine, messages = make(), [{"role": "user", "content": "1+1="}]
    with pytest.raises(CompileError, match=r"RG0503.*has no chat template"):
        engine.tokenize(messages)
    engine._reader.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} = {% endif %}"
    )
    assert engine.tokenize(messages) == engine.tokenize("1+1= = ")
    made = engine.generate(ask("2=", messages), SAMPLING, KEY, 0)
    assert made.prompt_lengths.tolist() == [2, 2, 2, 7, 7, 7]
    assert made.prompts[3] == messages


def test_a_prompt_without_tokens_is_refused(make: Make, ask: Ask) -> None:
    with pytest.raises(CompileError, match=r"RG0503.*makes no tokens of the prompt ''"):
        make().generate(ask("1=", ""), SAMPLING, KEY, 0)


def test_completions_end_with_the_end_token(make: Make) -> None:
    engine = make()
    assert engine.tokenize_completion("12") == [*engine.tokenize("12"), 2]


def test_reading_a_prompt_leaves_the_model_as_it_was(make: Make, ask: Ask) -> None:
    engine = make()
    engine.generate(ask("1="), SAMPLING, KEY, 0)
    assert isinstance(engine.model, type(AutoModelForCausalLM.from_config(engine.model.config)))
    assert not engine.model.lm_head._forward_pre_hooks
    assert not engine.model.training
