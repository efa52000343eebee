"""What small networks do and say, against the distributions of torch."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from rlinf_graph.engines.torch import acting
from rlinf_graph.engines.torch.noise import gumbel, uniform, uniform_to_gumbel
from rlinf_graph.ir import packed
from rlinf_graph.ir.graph import Space
from rlinf_graph.nodes.engine import Key, TrainBatch
from rlinf_graph.nodes.metric import Metrics
from tests.engines.torch.small import (
    ARRAY,
    BOTH,
    drawn,
    livelier,
    network,
    observed,
    policy_of,
    transitions,
)
from tests.engines.torch.test_forward import Seen


@BOTH
def test_logprobs_and_entropies_are_those_of_torch(action: Space) -> None:
    engine = livelier(network(action=action, trainable=True))
    samples, loss = transitions([4, 1, 6], action), Seen(entropy=True)
    engine.accumulate([TrainBatch(samples)], loss, Metrics())
    seen = samples.observations[[0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12]]
    expected = policy_of(engine, seen)
    assert loss.outputs.logprobs is not None
    assert loss.outputs.entropy is not None
    torch.testing.assert_close(loss.outputs.logprobs.detach(), expected.log_prob(samples.actions))
    torch.testing.assert_close(loss.outputs.entropy.detach(), expected.entropy())
    assert loss.outputs.values is None


@BOTH
def test_logprobs_of_actions_are_those_of_training(action: Space) -> None:
    engine = livelier(network(action=action))
    seen = drawn(50, 3)
    made = engine.act(observed(seen), Key(0, "act", 2, (7,)), 5, greedy=False)
    expected = policy_of(engine, seen).log_prob(made.values)
    torch.testing.assert_close(made.logprobs, expected)
    assert made.versions.tolist() == [5] * 50
    assert made.values.dtype == (torch.int64 if action.choices else torch.float64)
    greedy = engine.act(observed(seen), Key(0, "act", 2, (7,)), 5, greedy=True)
    torch.testing.assert_close(greedy.values, policy_of(engine, seen).mode)
    assert not greedy.logprobs.any()


@BOTH
def test_a_draw_does_not_depend_on_the_others(action: Space) -> None:
    engine = livelier(network(action=action))
    seen, key = observed(drawn(16, 3)), Key(3, "act", 1, (2, 70))
    whole = engine.act(seen, key, 0, greedy=False)
    for rows in ([3], [9, 2, 5], list(range(15, -1, -1)), list(range(8, 16))):
        made = engine.act(packed.select(seen, rows), key, 0, greedy=False)
        torch.testing.assert_close(made.values, whole.values[rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(made.logprobs, whole.logprobs[rows], rtol=0, atol=1e-12)


@BOTH
def test_a_draw_does_not_depend_on_how_many_are_made_at_once(
    action: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, seen = livelier(network(action=action)), observed(drawn(8, 3))
    keys = [Key(3, "act", 1, (step,)) for step in (0, 1, 63, 64, 65, 200, 2)]
    before = [engine.act(seen, key, 0, greedy=False).values for key in keys]
    again = [engine.act(seen, key, 0, greedy=False).values for key in keys]
    monkeypatch.setattr(acting, "BLOCK_NUMBERS", 7 * 8 * (4 if action.choices else 2))
    monkeypatch.setattr(acting, "MOST_BLOCKS", 2)
    engine._noise = acting.Noise()
    after = [engine.act(seen, key, 0, greedy=False).values for key in keys]
    assert all(torch.equal(a, b) and torch.equal(a, c)
               for a, b, c in zip(before, again, after, strict=True))  # fmt: skip


def test_every_part_of_the_key_matters() -> None:
    engine, seen = network(action=ARRAY), observed(torch.zeros(4, 3))
    first = engine.act(seen, Key(0, "act", 1, (2, 3)), 0, greedy=False).values
    others = [Key(1, "act", 1, (2, 3)), Key(0, "other", 1, (2, 3)), Key(0, "act", 2, (2, 3))]
    others += [Key(0, "act", 1, steps) for steps in ((3, 3), (2, 4), (3,))]
    for key in others:
        assert not torch.isclose(engine.act(seen, key, 0, greedy=False).values, first).any()
    later = observed(torch.zeros(4, 3), first=4)
    moved = engine.act(later, Key(0, "act", 1, (2, 3)), 0, greedy=False).values
    assert not torch.isclose(moved, first).any()


def test_noise_of_steps_is_that_of_positions() -> None:
    index = torch.tensor([5, 0, 2**40])
    several = uniform_to_gumbel(uniform(-77, index, torch.arange(3, 6), 11))
    assert all(torch.equal(several[i], gumbel(-77, index, 3 + i, 11)) for i in range(3))


def test_choices_are_as_frequent_as_they_are_probable() -> None:
    engine, row = livelier(network()), drawn(1, 3, seed=5)
    seen = observed(row.expand(500, 3))
    made = [engine.act(seen, Key(0, "act", 0, (s,)), 0, greedy=False).values for s in range(40)]
    counts = torch.cat(made).bincount(minlength=4).double()
    expected = cast("Categorical", policy_of(engine, row)).probs[0] * 20_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 20  # 3 degrees of freedom


def test_arrays_are_normal() -> None:
    engine, row = livelier(network(action=ARRAY)), drawn(1, 3, seed=5)
    seen = observed(row.expand(500, 3))
    made = [engine.act(seen, Key(0, "act", 0, (s,)), 0, greedy=False).values for s in range(40)]
    normal = cast("Independent", policy_of(engine, row)).base_dist
    shares = cast("Normal", normal).cdf(torch.cat(made))
    for column in shares.T:
        counts = torch.histc(column, bins=50, min=0, max=1)
        assert float(((counts - 400) ** 2 / 400).sum()) < 49 + 5 * math.sqrt(98)
    assert abs(float(torch.corrcoef(shares.T)[0, 1])) < 0.03


def test_values_along_steps() -> None:
    engine, episode = livelier(network("value", name="critic")), transitions([4, 1, 6], cut=4)
    values, finals = engine.step_values(episode)
    with torch.no_grad():
        torch.testing.assert_close(values, engine.model(episode.observations)[:, 0])
        last = torch.stack([final for row in episode.finals for final in row])
        torch.testing.assert_close(finals[episode.truncated], engine.model(last)[:, 0])
    assert [len(row) for row in episode.finals] == [1, 0, 1]
    assert finals.shape == (11,)
    assert not finals[~episode.truncated].any()
    with pytest.raises(ValueError, match="1 last observations of 2 truncated episodes"):
        engine.step_values(episode.replace(finals=[episode.finals[0], [], []]))


def test_values_in_training_are_those_of_states_in_which_was_acted() -> None:
    engine = livelier(network("value", name="critic", trainable=True))
    samples, loss = transitions([4, 1, 6]), Seen("values")
    engine.accumulate([TrainBatch(samples)], loss, Metrics())
    values, _ = engine.step_values(samples)
    assert loss.outputs.values is not None
    kept = [0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12]
    torch.testing.assert_close(loss.outputs.values.detach(), values[kept])
