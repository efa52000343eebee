from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.engines.torch.sampling import distribution
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Rollouts
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.engine import Key, Sampling
from tests.engines.torch.conftest import write_model
from tests.engines.vllm.conftest import (
    KEY,
    SIZES,
    TEXTS,
    Ask,
    Make,
    difference,
    read_model,
    said,
    scored,
)

if TYPE_CHECKING:
    from rlinf_graph.engines.vllm.engine import VllmEngine

SAMPLING = Sampling(samples=3, max_tokens=12)
CLOSE = 1e-4


def same(a: Rollouts, b: Rollouts) -> None:
    for name in ("index", "group", "lengths", "tokens", "mask", "versions", "finished"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.responses == b.responses
    torch.testing.assert_close(a.logprobs, b.logprobs, rtol=0, atol=CLOSE)


def test_fields_of_rollouts(engine: VllmEngine, ask: Ask) -> None:
    made = engine.generate(ask(*TEXTS, first=10), SAMPLING, KEY, version=4)
    count = len(TEXTS) * 3
    assert made.index.tolist() == list(range(30, 30 + count))
    assert made.group.tolist() == [10 + i // 3 for i in range(count)]
    assert made.prompt_lengths.tolist() == [len(TEXTS[i // 3]) for i in range(count)]
    assert made.prompts == [TEXTS[i // 3] for i in range(count)]
    assert made.columns[4] == {"truth": TEXTS[1]}
    assert torch.equal(made.versions, torch.where(made.mask, 4, -1))
    assert made.mask.sum() == made.response_lengths.sum()
    assert not made.logprobs[~made.mask].any()
    assert made.logprobs.dtype == torch.float32
    assert made.temperature.tolist() == [1.0] * count
    ends = zip(said(made), made.finished.tolist(), made.responses, strict=True)
    for tokens, finished, text in ends:
        assert (int(tokens[-1]) == 2) == finished
        assert finished or len(tokens) == 12
        assert not (tokens[:-1] == 2).any()
        assert len(text) == int((tokens > 2).sum())
    assert 0 < made.finished.sum() < count, "the test wants both kinds"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_fresh_forward(
    engine: VllmEngine, ask: Ask, folder: Path, temperature: float
) -> None:
    sampling = Sampling(samples=4, max_tokens=40, temperature=temperature)
    made = engine.generate(ask(*TEXTS), sampling, KEY, 0)
    assert made.temperature.unique().tolist() == [temperature]
    assert difference(read_model(folder), made) < CLOSE


def test_truncated_logprobs_are_of_the_truncated_distribution(
    engine: VllmEngine, ask: Ask, folder: Path
) -> None:
    sampling = Sampling(samples=4, max_tokens=20, temperature=0.7, top_p=0.8)
    made = engine.generate(ask(*TEXTS), sampling, KEY, 0)
    for logits, tokens, logprobs in zip(
        scored(read_model(folder), made), said(made), said(made, "logprobs"), strict=True
    ):
        expected = distribution(logits, sampling).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(expected, logprobs, rtol=0, atol=CLOSE)


def test_greedy_takes_the_best_logit(engine: VllmEngine, ask: Ask, folder: Path) -> None:
    made = engine.generate(ask(*TEXTS), Sampling(max_tokens=30, temperature=0), KEY, 0)
    assert not made.logprobs.any()
    assert made.temperature.unique().tolist() == [1.0]
    for logits, tokens in zip(scored(read_model(folder), made), said(made), strict=True):
        behind = logits.max(dim=1).values - logits.gather(1, tokens[:, None])[:, 0]
        assert float(behind.max()) < CLOSE


def test_a_key_gives_the_same_responses_again(engine: VllmEngine, ask: Ask) -> None:
    first = engine.generate(ask(*TEXTS), SAMPLING, KEY, 0)
    same(engine.generate(ask(*TEXTS), SAMPLING, KEY, 0), first)
    other = engine.generate(ask(*TEXTS), SAMPLING, Key(0, KEY.node, 6), 0)
    assert other.responses != first.responses
    alone = engine.generate(packed.select(ask(*TEXTS), [3]), SAMPLING, KEY, 0)
    same(alone, packed.select(first, [9, 10, 11]))
    assert len(set(first.responses[:3])) > 1, "responses to one prompt have seeds of their own"


def test_a_group_reads_its_prompt_once(
    engine: VllmEngine, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached: list[int] = []
    step = engine._engine.step

    def seen() -> Any:
        outputs = step()
        cached.extend(o.num_cached_tokens for o in outputs if o.finished)
        return outputs

    monkeypatch.setattr(engine._engine, "step", seen)
    prompt = "1+2-3+4-5+6-" * 6
    engine.generate(ask(prompt), Sampling(samples=5, max_tokens=3), KEY, 0)
    assert sorted(cached) == [0, 64, 64, 64, 64], "all of the prompt but its last part of a block"


def test_stop_texts_end_a_response_and_stay_in_it(engine: VllmEngine, ask: Ask) -> None:
    stop = ("=", "+1")
    sampling = Sampling(samples=8, max_tokens=40, stop=stop)
    made = engine.generate(ask(*TEXTS), sampling, KEY, 0)
    stopped = 0
    for tokens, finished in zip(said(made), made.finished, strict=True):
        text = engine._text.decode([tokens.tolist()], special=True)[0]
        ended = text.endswith(stop)
        assert all(part not in text[:-1] for part in stop)
        assert bool(finished) == (ended or int(tokens[-1]) == 2)
        stopped += ended
    assert stopped > len(made) // 2
    special = engine.generate(
        ask(*TEXTS), Sampling(samples=4, max_tokens=40, stop=("<bos>",)), KEY, 0
    )
    assert any(int(tokens[-1]) == 1 for tokens in said(special)), "special tokens are spelled out"


def test_a_stream_tells_every_response_once(engine: VllmEngine, ask: Ask) -> None:
    sampling = Sampling(samples=4, max_tokens=30)
    whole = engine.generate(ask(*TEXTS), sampling, KEY, 2)
    parts = list(engine.stream(ask(*TEXTS), sampling, KEY, 2))
    assert len(parts) > 3
    ends = [int(part.response_lengths.max()) for part in parts]
    assert ends == sorted(ends), "those that end first come first"
    same(packed.in_order(packed.concat(parts)), whole)


def test_keep_takes_those_that_finish_first(engine: VllmEngine, ask: Ask) -> None:
    kept = engine.generate(ask(*TEXTS), Sampling(samples=6, max_tokens=20, keep=2), KEY, 0)
    whole = engine.generate(ask(*TEXTS), Sampling(samples=6, max_tokens=20), KEY, 0)
    assert kept.index.tolist() == list(range(12))
    rows = []
    lengths, finished = whole.response_lengths.tolist(), whole.finished.tolist()
    for begin in range(0, len(whole), 6):
        late = [(not finished[row], lengths[row], row) for row in range(begin, begin + 6)]
        rows += sorted(row for *_, row in sorted(late)[:2])
    expected = packed.select(whole, rows)
    assert kept.responses == expected.responses
    assert torch.equal(kept.tokens, expected.tokens)


def test_no_prompts_no_responses(engine: VllmEngine, ask: Ask) -> None:
    assert len(engine.generate(ask(), SAMPLING, KEY, 0)) == 0


@pytest.mark.parametrize(
    ("sampling", "prompt", "said_of_it"),
    [
        (Sampling(temperature=0.001), "1+1=", "no temperature below 0.01"),
        (Sampling(), "1" * 256, "a prompt of 256 tokens leaves no room"),
        (Sampling(), "", "makes no tokens of the prompt"),
        (Sampling(), [{"role": "user", "content": "1"}], "has no chat template"),
    ],
)
def test_refused_requests(
    engine: VllmEngine, ask: Ask, sampling: Sampling, prompt: Any, said_of_it: str
) -> None:
    with pytest.raises(CompileError, match=said_of_it):
        engine.generate(ask(prompt), sampling, KEY, 0)
    assert len(engine.generate(ask("1+1="), SAMPLING, KEY, 0)) == 3


def test_the_context_ends_a_response(engine: VllmEngine, ask: Ask) -> None:
    sampling = Sampling(max_tokens=500, samples=4)
    made = engine.generate(ask("1" * 250), sampling, KEY, 0)
    assert made.lengths.max() == 256
    assert not made.finished[made.lengths == 256].any()


def test_random_weights_are_those_of_the_torch_engine(make: Make, ask: Ask, tmp_path: Path) -> None:
    path = write_model(tmp_path / "bare", "llama", **SIZES)
    made = make(path, weights="random").generate(ask(*TEXTS), SAMPLING, KEY, 0)
    model = ModelDef("policy", str(path), "lm", "float32", "random")
    torch_engine = TorchEngine(model, seed=0, device="cpu", dtype="float32", trainable=False)
    found = torch_engine.logprobs(made)
    torch.testing.assert_close(found, made.logprobs, rtol=0, atol=CLOSE)
