from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rlinf_graph.ir.batches import Rollouts
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.engine import Sampling
from tests.engines.vllm.conftest import (
    KEY,
    TEXTS,
    Ask,
    difference,
    read_model,
    said,
    scored,
    write_weights,
)

if TYPE_CHECKING:
    from rlinf_graph.engines.vllm.engine import VllmEngine

CLOSE = 1e-4
SAMPLING = Sampling(samples=3, max_tokens=60)


class Elsewhere:
    """Sampling in another thread, stopped before a step until it is told to go on."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
        self.there, self.on = threading.Event(), threading.Event()
        self.result: Rollouts | None = None
        self.error: BaseException | None = None
        self._engine, self._taken, self._before = engine, 0, before
        self._step = engine._sampler._step
        monkeypatch.setattr(engine._sampler, "_step", self._slow)

    def _slow(self, *given: Any) -> Any:
        self._taken += 1
        made = self._step(*given)
        if self._taken == self._before:
            self.there.set()
            assert self.on.wait(60)
        return made

    def run(self, work: Callable[[], Rollouts], between: Callable[[], None]) -> Rollouts:
        """Do `work`, and `between` while it goes on: asked for in a step, done before the next."""

        def sample() -> None:
            try:
                self.result = work()
            except BaseException as error:
                self.error = error
                self.there.set()

        one, other = threading.Thread(target=sample), threading.Thread(target=between)
        one.start()
        assert self.there.wait(60)
        asked = self._engine._turns._asked
        other.start()
        while self._engine._turns._asked == asked and other.is_alive():
            threading.Event().wait(0.001)
        self.on.set()
        other.join(60)
        one.join(60)
        assert not one.is_alive()
        assert not other.is_alive()
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


def mixed_difference(models: dict[int, Any], made: Rollouts) -> float:
    """As `difference`, each token by the model of its version."""
    logits = {version: scored(model, made) for version, model in models.items()}
    worst = 0.0
    rows = zip(said(made), said(made, "logprobs"), said(made, "versions"), strict=True)
    for row, (tokens, logprobs, versions) in enumerate(rows):
        for version, scores in logits.items():
            own = versions == version
            spread = torch.log_softmax(scores[row], dim=-1).gather(1, tokens[:, None])[:, 0]
            if own.any():
                worst = max(worst, float((spread - logprobs)[own].abs().max()))
    return worst


def test_new_weights_while_sampling(
    engine: VllmEngine, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = read_model(path)
    new = write_weights(path, seed=1)
    elsewhere = Elsewhere(engine, monkeypatch, before=9)
    made = elsewhere.run(
        lambda: engine.generate(ask(*TEXTS), SAMPLING, KEY, 4),
        lambda: engine.update_weights(new.named_parameters(), 5),
    )
    versions = said(made, "versions")
    assert all(v.tolist() == sorted(v.tolist()) for v in versions)
    assert sorted({int((v == 4).sum()) for v in versions})[-1] == 9
    assert sum(bool((v == 5).any()) for v in versions) > len(made) // 2
    assert mixed_difference({4: old, 5: new}, made) < CLOSE
    assert difference(old, made) > 0.01


def test_abort_and_resume(
    engine: VllmEngine, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = read_model(path)
    elsewhere = Elsewhere(engine, monkeypatch, before=9)
    cut = elsewhere.run(lambda: engine.generate(ask(*TEXTS), SAMPLING, KEY, 4), engine.abort)
    assert cut.index.tolist() == list(range(len(TEXTS) * 3))
    assert cut.response_lengths.max() == 9
    assert (cut.response_lengths[~cut.finished] == 9).all()
    assert 0 < cut.finished.sum() < len(cut)
    assert difference(old, cut) < CLOSE
    new = write_weights(path, seed=1)
    engine.update_weights(new.named_parameters(), 5)
    made = engine.resume(cut, SAMPLING, KEY, 5)
    for name in ("index", "group", "prompt_lengths", "temperature"):
        assert torch.equal(getattr(made, name), getattr(cut, name))
    before = zip(said(cut), said(cut, "logprobs"), cut.finished.tolist(), strict=True)
    after = zip(said(made), said(made, "logprobs"), said(made, "versions"), strict=True)
    for (tokens, logprobs, finished), (all_tokens, all_logprobs, versions) in zip(
        before, after, strict=True
    ):
        assert torch.equal(all_tokens[: len(tokens)], tokens)
        assert torch.equal(all_logprobs[: len(tokens)], logprobs)
        assert versions.tolist() == [4] * len(tokens) + [5] * (len(all_tokens) - len(tokens))
        assert finished == (len(all_tokens) == len(tokens))
    assert made.finished.sum() > cut.finished.sum()
    assert (made.finished | (made.response_lengths == 60)).all()
    assert mixed_difference({4: old, 5: new}, made) < CLOSE
    ends = zip(made.responses, said(made), strict=True)
    assert all(len(text) == int((tokens > 2).sum()) for text, tokens in ends)


def test_resuming_what_is_complete_changes_nothing(
    engine: VllmEngine, ask: Ask, path: Path
) -> None:
    sampling = Sampling(samples=2, max_tokens=5)
    made = engine.generate(ask(*TEXTS), sampling, KEY, 1)
    again = engine.resume(made, sampling, KEY, 2)
    assert torch.equal(again.tokens, made.tokens)
    assert torch.equal(again.versions, made.versions)
    assert torch.equal(again.logprobs, made.logprobs)
    assert again.responses == made.responses


def test_abort_without_sampling_does_nothing(engine: VllmEngine, ask: Ask, path: Path) -> None:
    engine.abort()
    made = engine.generate(ask(*TEXTS), SAMPLING, KEY, 0)
    assert (made.finished | (made.response_lengths == 60)).all()


def test_weights_may_change_between_the_parts_of_a_stream(
    engine: VllmEngine, ask: Ask, path: Path
) -> None:
    old = read_model(path)
    new = write_weights(path, seed=1)
    parts = []
    for part in engine.stream(ask(*TEXTS), SAMPLING, KEY, 0):
        if not parts:
            engine.update_weights(new.named_parameters(), 1)
        parts.append(part)
    assert max(mixed_difference({0: old, 1: new}, part) for part in parts) < CLOSE
    assert bool((parts[-1].versions == 1).any())


def test_a_stream_left_unfinished(engine: VllmEngine, ask: Ask, path: Path) -> None:
    stream = engine.stream(ask(*TEXTS), SAMPLING, KEY, 0)
    next(stream)
    with pytest.raises(RuntimeError, match="sampling already: finish or close that first"):
        engine.generate(ask("1"), SAMPLING, KEY, 0)
    stream.close()
    assert not engine._engine.has_unfinished_requests()
    assert len(engine.generate(ask("1"), SAMPLING, KEY, 0)) == 3


def test_an_update_that_breaks_off_ends_what_is_being_sampled(
    engine: VllmEngine, ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = list(read_model(folder).named_parameters())
    elsewhere = Elsewhere(engine, monkeypatch, before=5)

    def broken() -> None:
        with pytest.raises(CompileError, match="has no weight `nothing`"):
            engine.update_weights([*weights[:9], ("nothing", weights[0][1])], 1)

    with pytest.raises(RuntimeError, match="broke off"):
        elsewhere.run(lambda: engine.generate(ask(*TEXTS), SAMPLING, KEY, 0), broken)
    engine.update_weights(weights, 2)
    made = engine.generate(ask(*TEXTS), SAMPLING, KEY, 2)
    assert difference(read_model(folder), made) < CLOSE


def test_sleep_and_wake(engine: VllmEngine, ask: Ask, path: Path) -> None:
    first = engine.generate(ask(*TEXTS), SAMPLING, KEY, 0)
    engine.sleep()
    with pytest.raises(RuntimeError, match="the engine sleeps: wake it"):
        engine.generate(ask("1"), SAMPLING, KEY, 0)
    engine.wake("weights")
    new = write_weights(path, seed=1)
    engine.update_weights(new.named_parameters(), 1)
    with pytest.raises(RuntimeError, match="the engine sleeps: wake it"):
        engine.generate(ask("1"), SAMPLING, KEY, 0)
    engine.wake("cache")
    made = engine.generate(ask(*TEXTS), SAMPLING, KEY, 1)
    assert difference(new, made) < CLOSE
    assert made.responses != first.responses
    for parts in (("cache",), ("weights",), ()):
        engine.sleep(*parts)
        engine.sleep(*parts)
        engine.load()
        engine.load()
        assert engine.generate(ask(*TEXTS), SAMPLING, KEY, 1).responses == made.responses
    engine.sleep("weights")
    engine.sleep("cache")
    with pytest.raises(RuntimeError, match="the engine sleeps"):
        engine.generate(ask("1"), SAMPLING, KEY, 0)
    assert engine._engine.model_executor.sleeping_tags == {"weights", "kv_cache"}
    engine.update_weights(new.named_parameters(), 2)
    engine.wake("cache")
    assert difference(new, engine.generate(ask(*TEXTS), SAMPLING, KEY, 2)) < CLOSE


def test_what_is_being_sampled_sleeps_too(
    engine: VllmEngine, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def nap() -> None:
        engine.sleep()
        engine.wake()

    elsewhere = Elsewhere(engine, monkeypatch, before=5)
    made = elsewhere.run(lambda: engine.generate(ask(*TEXTS), SAMPLING, KEY, 0), nap)
    assert difference(read_model(path), made) < CLOSE
    assert (made.finished | (made.response_lengths == 60)).all()
