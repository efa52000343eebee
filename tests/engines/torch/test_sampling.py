import math

import pytest
import torch

from rlinf_graph.engines.torch.noise import TokenNoise
from rlinf_graph.engines.torch.sampling import distribution, draw
from rlinf_graph.nodes.engine import Sampling

LOGITS = torch.tensor([0.1, 2.0, -1.0, 0.7, 1.4, -3.0], dtype=torch.float64)


@pytest.mark.parametrize("sampling", [
    Sampling(), Sampling(temperature=0.5), Sampling(temperature=2.0), Sampling(top_p=0.7),
    Sampling(temperature=1.5, top_p=0.8),
])  # fmt: skip
def test_tokens_are_drawn_with_the_probabilities_that_are_reported(sampling: Sampling) -> None:
    count = 50_000
    logits = LOGITS.expand(count, -1)
    tokens, logprobs = draw(logits, sampling, TokenNoise(11, 4), torch.arange(count), 3)
    wanted = distribution(LOGITS[None], sampling)[0].exp()
    kept = wanted > 0
    counts = tokens.bincount(minlength=6).double()
    assert not counts[~kept].any()
    statistic = ((counts - count * wanted)[kept] ** 2 / (count * wanted)[kept]).sum()
    degrees = int(kept.sum()) - 1
    assert statistic < degrees + 4 * math.sqrt(2 * degrees)
    assert torch.equal(logprobs, distribution(LOGITS[None], sampling)[0][tokens])


def test_top_p_keeps_the_smallest_set_and_renormalizes() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)
    kept = distribution(probabilities.log(), Sampling(top_p=0.65)).exp()
    expected = torch.tensor([[0.0, 0.4, 0.0, 0.3]], dtype=torch.float64) / 0.7
    torch.testing.assert_close(kept, expected)
    one = distribution(probabilities.log(), Sampling(top_p=0.01)).exp()
    assert one.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_temperature_divides_the_logits() -> None:
    found = distribution(LOGITS[None], Sampling(temperature=0.25))
    torch.testing.assert_close(found, torch.log_softmax(LOGITS[None] * 4, dim=-1))


def test_greedy_is_a_point_mass() -> None:
    noise, greedy = TokenNoise(11, 1), Sampling(temperature=0)
    tokens, logprobs = draw(LOGITS[None], greedy, noise, torch.arange(1), 0)
    assert tokens.tolist() == [1]
    assert logprobs.tolist() == [0.0]


def test_low_precision_logits_are_widened() -> None:
    assert distribution(LOGITS[None].bfloat16(), Sampling()).dtype == torch.float32
    assert distribution(LOGITS[None], Sampling()).dtype == torch.float64
