"""What goes through a data-parallel rank at once."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.ir.work import Lengths


@dataclass(frozen=True)
class Packed:
    """What goes through one data-parallel rank at once.

    Attributes:
        samples: sequences; each with the vision tower's image where there is one.
        tokens: of all of them.
        squares: sum of their squared lengths.
        outputs: positions that go through the head.
    """

    samples: float
    tokens: float
    squares: float
    outputs: float

    @classmethod
    def of(cls, samples: float, lengths: Lengths, head: str) -> Packed:
        """Samples of average length; a score is read at one position of each."""
        mean = lengths.mean
        square = sum(q * q for q in lengths.quantiles) / len(lengths.quantiles)
        outputs = samples if head == "score" else samples * mean
        return cls(samples, samples * mean, samples * square, outputs)

    def padded(self, lengths: Lengths) -> Packed:
        """The same batch with every sequence as long as the expected longest of them."""
        longest = expected_longest(lengths, self.samples)
        tokens = self.samples * longest
        return Packed(self.samples, tokens, tokens * longest, self.outputs)


def expected_longest(lengths: Lengths, samples: float) -> float:
    """Mean length of the longest of so many sequences."""
    ends = sorted(lengths.quantiles)
    longest = previous = 0.0
    for index, end in enumerate(ends):
        longest += (end - previous) * (1 - (index / len(ends)) ** samples)
        previous = end
    return longest
