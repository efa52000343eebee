import math

import torch

from rlinf_graph.engines.torch.noise import TokenNoise, key_stream, stream
from rlinf_graph.nodes.engine import Key

SEED = stream(7, "rollout policy", 3)


def gumbel(stream: int, index: torch.Tensor, position: int, size: int) -> torch.Tensor:
    return TokenNoise(stream, position + 1).at(index, position, size)


def uniform(noise: torch.Tensor) -> torch.Tensor:
    return torch.exp(-torch.exp(-noise))


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Deviations from the mean of the statistic, which is normal for many degrees of freedom."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = counts.numel() - 1
    return float((statistic - degrees) / math.sqrt(2 * degrees))


def test_a_stream_is_the_same_on_every_machine() -> None:
    assert stream(7, "rollout policy", 3) == -9161635160323301558
    assert stream("a", "bc") != stream("ab", "c")
    assert key_stream(Key(7, "rollout policy", 3)) == SEED


def test_noise_of_a_sample_does_not_depend_on_the_others() -> None:
    index = torch.tensor([5, 0, 2**40, 17])
    together = gumbel(SEED, index, 9, 50)
    for row in range(len(index)):
        assert torch.equal(together[row], gumbel(SEED, index[row : row + 1], 9, 50)[0])
    assert torch.equal(together[:, :20], gumbel(SEED, index, 9, 20))


def test_every_part_of_the_name_matters() -> None:
    index = torch.arange(4)
    noise = gumbel(SEED, index, 9, 50)
    for other in (gumbel(SEED + 1, index, 9, 50), gumbel(SEED, index, 10, 50),
                  gumbel(SEED, index + 4, 9, 50)):  # fmt: skip
        assert not torch.isclose(noise, other).any()


def test_noise_does_not_depend_on_how_many_positions_are_made_at_once() -> None:
    index, fewer = torch.arange(50), torch.arange(0, 50, 7)
    noise, size = TokenNoise(SEED, 300), 200  # a block holds 6 positions of the 50, 40 of the 8
    for position in range(14):
        asked = index if position < 8 else fewer
        assert torch.equal(noise.at(asked, position, size), gumbel(SEED, asked, position, size))


def test_noise_is_finite_and_uniform_under_its_distribution() -> None:
    draws = uniform(gumbel(SEED, torch.arange(2000), 0, 500))
    assert draws.min() > 0
    assert draws.max() < 1
    counts = torch.histc(draws, bins=1000, min=0, max=1)
    assert abs(chi_square(counts, torch.full_like(counts, draws.numel() / 1000))) < 4


def test_neighbours_are_independent() -> None:
    samples = torch.stack([gumbel(SEED, torch.arange(301), p, 301) for p in range(2)])
    draws = uniform(samples)
    here = draws[0, :-1, :-1]
    for there in (draws[0, 1:, :-1], draws[0, :-1, 1:], draws[1, :-1, :-1]):
        cells = (here * 16).long() * 16 + (there * 16).long()
        counts = cells.flatten().bincount(minlength=256).double()
        assert abs(chi_square(counts, torch.full_like(counts, here.numel() / 256))) < 4


def test_the_extreme_words_give_finite_noise() -> None:
    lowest, highest = 0.5 * 2.0**-52, 1 - 0.5 * 2.0**-52
    for draw in (lowest, highest):
        assert math.isfinite(-math.log(-math.log(draw)))
