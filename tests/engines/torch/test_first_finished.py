"""Of the responses to a prompt only the first to finish come back, the same wherever they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from rlinf_graph.engines.torch import decoding
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.nodes.engine import Key, Sampling
from tests.engines.torch.conftest import write_model

KEY = Key(0, "rollout policy", 5)
ALL = Sampling(samples=6, max_tokens=30)
TEXTS = ("1+2=", "37+48=", "5=", "123+456=")

Make = Callable[..., TorchEngine]
Ask = Callable[..., Prompts]


def expected_rows(made: Rollouts, samples: int, keep: int) -> list[int]:
    """By sorting, from the whole of what was drawn."""
    lengths, finished = made.response_lengths.tolist(), made.finished.tolist()
    rows: list[int] = []
    for start in range(0, len(made), samples):
        group = range(start, start + samples)
        first = sorted(group, key=lambda row: (not finished[row], lengths[row], row))
        rows += sorted(first[:keep])
    return rows


@pytest.mark.parametrize("keep", [1, 2, 5, 6])
@pytest.mark.parametrize("model_type", ["qwen2", "mistral"])
def test_the_shortest_finished_come_back_in_the_order_drawn(
    keep: int, model_type: str, make: Make, ask: Ask, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"sliding_window": 64} if model_type == "mistral" else {}
    path = write_model(tmp_path_factory.mktemp("kept") / "model", model_type, **settings)
    engine = make(path=path)
    every = engine.generate(ask(*TEXTS, first=7), ALL, KEY, 3)
    made = engine.generate(ask(*TEXTS, first=7), replace(ALL, keep=keep), KEY, 3)
    wanted = packed.select(every, expected_rows(every, 6, keep))
    assert made.index.tolist() == list(range(7 * keep, (7 + len(TEXTS)) * keep))
    assert made.group.tolist() == wanted.group.tolist()
    assert made.responses == wanted.responses
    assert torch.equal(made.tokens, wanted.tokens)
    assert torch.equal(made.finished, wanted.finished)
    torch.testing.assert_close(made.logprobs, wanted.logprobs, rtol=0, atol=1e-9)


def test_cut_off_responses_come_after_all_that_finished(make: Make, ask: Ask) -> None:
    engine, sampling = make(), Sampling(samples=8, max_tokens=3, keep=7)
    made = engine.generate(ask(*TEXTS), sampling, KEY, 0)
    every = engine.generate(ask(*TEXTS), replace(sampling, keep=None), KEY, 0)
    assert 0 < int(every.finished.sum()) < len(every)
    assert made.responses == packed.select(every, expected_rows(every, 8, 7)).responses


def test_prompts_alone_or_together_give_the_same(make: Make, ask: Ask) -> None:
    engine, sampling = make(), replace(ALL, keep=3)
    asked = ask(*TEXTS)
    together = engine.generate(asked, sampling, KEY, 0)
    alone = [engine.generate(packed.select(asked, [row]), sampling, KEY, 0) for row in range(4)]
    assert packed.concat(alone).responses == together.responses


def test_decoding_of_a_group_ends_when_it_is_complete(
    make: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    tokens: list[int] = []
    read = decoding.Live.read

    def counted(live: decoding.Live, model: PreTrainedModel, drawn: torch.Tensor) -> None:
        tokens.append(int(live.going.sum()))
        read(live, model, drawn)

    monkeypatch.setattr(decoding.Live, "read", counted)
    engine.generate(ask(*TEXTS), ALL, KEY, 0)
    whole = list(tokens)
    tokens.clear()
    made = engine.generate(ask(*TEXTS), replace(ALL, keep=2), KEY, 0)
    assert len(tokens) == int(made.response_lengths.max()) - 1
    assert sum(tokens) < sum(whole) / 2


def test_no_prompts_give_nothing(make: Make, ask: Ask) -> None:
    assert len(make().generate(ask(), replace(ALL, keep=2), KEY, 0)) == 0
