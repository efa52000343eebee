"""How long the first to finish are, against drawing them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlinf_graph import rl
from rlinf_graph.nodes.first_finished import first_of

DECILES = rl.Lengths((5, 9, 12, 15, 18, 22, 28, 40, 60, 100), "declared")


@pytest.mark.parametrize(("samples", "keep"), [(12, 8), (8, 1), (4, 3)])
def test_means_are_those_of_drawn_responses(samples: int, keep: int) -> None:
    draws = np.random.default_rng(0).choice(DECILES.quantiles, size=(20_000, samples))
    draws.sort(axis=1)
    kept, decoded = first_of(DECILES, samples, keep)
    assert kept.mean == pytest.approx(draws[:, :keep].mean(), rel=0.04)
    given_up = np.minimum(draws, draws[:, keep - 1 : keep])
    assert decoded.mean == pytest.approx(given_up.mean(), rel=0.04)
    assert kept.mean <= decoded.mean <= DECILES.mean


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(1, 1000), min_size=1, max_size=12), st.integers(1, 16), st.integers(1, 16)
)
def test_keeping_fewer_is_never_longer(lengths: list[float], a: int, b: int) -> None:
    few, samples = sorted((a, b))
    whole = rl.Lengths(tuple(lengths), "declared")
    kept, decoded = first_of(whole, samples, few)
    more, longer = first_of(whole, samples, min(few + 1, samples))
    assert kept.mean <= decoded.mean * (1 + 1e-9)
    if few + 1 < samples:
        assert kept.mean <= more.mean * (1 + 1e-9)
        assert decoded.mean <= longer.mean * (1 + 1e-9)
    assert {*kept.quantiles} <= {*whole.quantiles}
    assert kept.origin == whole.origin


def test_keeping_all_changes_nothing() -> None:
    assert first_of(DECILES, 4, 4) == (DECILES, DECILES)
