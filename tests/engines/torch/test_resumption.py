"""Responses that are cut and gone on with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlinf_graph.engines.torch import decoding
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.nodes.engine import Key, Sampling
from tests.engines.torch.conftest import write_model
from tests.engines.torch.test_generation import plain_logprobs, same

KEY = Key(0, "rollout policy", 5)
SAMPLING = Sampling(samples=3, max_tokens=12)
TEXTS = ("1+2=", "37+48=", "5=", "123+456=", "a b c", "9+9=")

Make = Callable[..., TorchEngine]
Ask = Callable[..., Prompts]


def cut_after(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, passes: int, work: Callable[[], Rollouts]
) -> Rollouts:
    """What `work` gives when `abort` comes during a pass of the model."""
    forward, taken = engine.model.forward, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == passes:
            engine.abort()
        return forward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "forward", counted)
        return work()


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gemma2", "mistral"])
@pytest.mark.parametrize("passes", [1, 2, 5, 9])
def test_with_the_same_weights_nothing_is_lost_or_changed(
    make: Make, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str,
    passes: int,
) -> None:  # fmt: skip
    settings = {"sliding_window": 4} if model_type in ("gemma2", "mistral") else {}
    engine = make(path=write_model(tmp_path / model_type, model_type, **settings))
    whole = engine.generate(ask(*TEXTS), SAMPLING, KEY, 3)
    part = cut_after(
        engine, monkeypatch, passes, lambda: engine.generate(ask(*TEXTS), SAMPLING, KEY, 3)
    )
    assert part.tokens.numel() < whole.tokens.numel()
    assert part.index.tolist() == whole.index.tolist()
    same(engine.resume(part, SAMPLING, KEY, 3), whole)


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2"])
def test_what_is_read_again_comes_in_passes(
    make: Make, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    settings = {"sliding_window": 4} if model_type == "gemma2" else {}
    engine = make(path=write_model(tmp_path / model_type, model_type, **settings))
    whole = engine.generate(ask(*TEXTS), SAMPLING, KEY, 3)
    part = cut_after(engine, monkeypatch, 5, lambda: engine.generate(ask(*TEXTS), SAMPLING, KEY, 3))
    sizes: list[int] = []
    forward = engine.model.forward

    def measured(*args: Any, **options: Any) -> Any:
        sizes.append(options["input_ids"].numel())
        return forward(*args, **options)

    monkeypatch.setattr(decoding, "PASS_TOKENS", 32)
    monkeypatch.setattr(engine.model, "forward", measured)
    same(engine.resume(part, SAMPLING, KEY, 3), whole)
    assert max(sizes) <= 32
    assert len([size for size in sizes if size > len(part)]) > 1


def test_cut_again_and_again(make: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    whole = engine.generate(ask(*TEXTS), SAMPLING, KEY, 3)
    made = cut_after(engine, monkeypatch, 3, lambda: engine.generate(ask(*TEXTS), SAMPLING, KEY, 3))
    for passes in (1, 2, 3):
        part, before = made, made.tokens.numel()
        made = cut_after(
            engine, monkeypatch, passes, lambda part=part: engine.resume(part, SAMPLING, KEY, 3)
        )
        assert before + (passes > 1) <= made.tokens.numel() < whole.tokens.numel()
    same(engine.resume(made, SAMPLING, KEY, 3), whole)


def test_new_weights_draw_what_follows(
    make: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, old, new = make(), make(), make(seed=1)
    part = cut_after(engine, monkeypatch, 5, lambda: engine.generate(ask(*TEXTS), SAMPLING, KEY, 3))
    engine.update_weights(new.weights().items(), 4)
    made = engine.resume(part, SAMPLING, KEY, 4)
    rows = zip(
        part.tokens.split(part.lengths.tolist()), made.tokens.split(made.lengths.tolist()),
        strict=True,
    )  # fmt: skip
    assert all(torch.equal(after[: len(before)], before) for before, after in rows)
    assert sorted(made.versions.unique().tolist()) == [-1, 3, 4]
    assert int((made.versions == 3).sum()) == int(part.mask.sum())
    assert (made.finished | (made.response_lengths == SAMPLING.max_tokens)).all()
    for version, by in ((3, old), (4, new)):
        chosen, said = made.versions == version, plain_logprobs(by, made)
        torch.testing.assert_close(made.logprobs[chosen], said[chosen], rtol=0, atol=1e-9)
    for name in ("group", "prompt_lengths", "temperature"):
        assert torch.equal(getattr(made, name), getattr(part, name))
    assert made.columns == part.columns
    assert [len(text) for text in made.responses] == [
        int((tokens[start:] > 2).sum())
        for tokens, start in zip(
            made.tokens.split(made.lengths.tolist()), made.prompt_lengths.tolist(), strict=True
        )
    ]


def test_a_stop_text_across_the_cut(make: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    long = Sampling(samples=8, max_tokens=24)
    free = engine.generate(ask(*TEXTS), long, KEY, 0)
    text = next(text for text in free.responses if len(text) > 12)
    stop = text[4:7]
    sampling = Sampling(samples=8, max_tokens=24, stop=(stop,))
    whole = engine.generate(ask(*TEXTS), sampling, KEY, 0)
    assert any(stop in text for text in whole.responses)
    for passes in range(4, 9):
        part = cut_after(
            engine, monkeypatch, passes, lambda: engine.generate(ask(*TEXTS), sampling, KEY, 0)
        )
        same(engine.resume(part, sampling, KEY, 0), whole)


def test_what_is_complete_stays(make: Make, ask: Ask) -> None:
    engine = make()
    whole = engine.generate(ask(*TEXTS), SAMPLING, KEY, 0)
    same(engine.resume(whole, SAMPLING, KEY, 1), whole)
    nobody = packed.select(whole, [])
    assert len(engine.resume(nobody, SAMPLING, KEY, 1)) == 0


def test_abort_before_generation_does_nothing(make: Make, ask: Ask) -> None:
    engine = make()
    engine.abort()
    made = engine.generate(ask(*TEXTS), SAMPLING, KEY, 0)
    assert (made.finished | (made.response_lengths == SAMPLING.max_tokens)).all()
