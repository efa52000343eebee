"""What a node asks of the hardware, independent of any hardware.

A node type's `work` function returns one of these for a given volume of data; the cost model
turns it into seconds and bytes on a device, the lowering never looks at it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.ir.operations import Operations


@dataclass(frozen=True)
class Lengths:
    """A distribution of sequence lengths in tokens: quantiles at equal steps of probability.

    `origin` says where it comes from: `measured`, `declared`, or `declared default`.
    """

    quantiles: tuple[float, ...]
    origin: str

    @property
    def mean(self) -> float:
        """Tokens of the average sequence."""
        return sum(self.quantiles) / len(self.quantiles)

    @property
    def longest(self) -> float:
        """Tokens of the longest sequence that is counted on."""
        return max(self.quantiles)

    @classmethod
    def fixed(cls, tokens: float, origin: str) -> Lengths:
        """Every sequence has the same length."""
        return cls((float(tokens),), origin)


@dataclass(frozen=True)
class Volume:
    """How much a node's output carries in one iteration: samples, and tokens of each."""

    samples: int
    lengths: Lengths
    prompt_tokens: float = 0.0
    group: int = 1

    @property
    def tokens(self) -> float:
        """Tokens of all samples."""
        return self.samples * self.lengths.mean


@dataclass(frozen=True)
class Speculative:
    """Speculative decoding: a draft model proposes tokens, which one step of the model checks.

    Attributes:
        tokens: proposed in each step.
        acceptance: probability that a proposed token is kept, each like the others.
        cost: seconds of a draft model's step by those of the model's.
    """

    tokens: int
    acceptance: float
    cost: float = 0.05

    @property
    def kept(self) -> float:
        """Tokens that a step yields on average, the model's own included.

        (1 - a^(k+1)) / (1 - a) of Leviathan et al. 2023, equation 1.
        """
        if self.acceptance >= 1:
            return self.tokens + 1.0
        return (1 - self.acceptance ** (self.tokens + 1)) / (1 - self.acceptance)


@dataclass(frozen=True)
class Generate:
    """Sample `samples` responses to prompts of `prompt_tokens`, `group` of them to each prompt.

    With `finish` below 1, sampling stops when that share of a batch has ended; the others are
    carried over and go on in the next iteration, where their tokens so far are read again. `cuts`
    is how often new weights come while a chunk is sampled: all that is under way is read again.
    """

    samples: int
    prompt_tokens: float
    response: Lengths
    group: int = 1
    speculative: Speculative | None = None
    finish: float = 1.0
    cuts: float = 0.0


@dataclass(frozen=True)
class Forward:
    """One forward pass over `samples` sequences, with the head named."""

    samples: int
    lengths: Lengths
    head: str = "lm"


@dataclass(frozen=True)
class Train:
    """Forward and backward over `samples` sequences `epochs` times, `optimizer_steps` in all."""

    samples: int
    lengths: Lengths
    epochs: int
    optimizer_steps: int
    head: str = "lm"


@dataclass(frozen=True)
class HostWork:
    """Work of the processors: declared seconds of one core for each sample.

    `origin` is `declared` for a figure of the user's, `declared default` for an assumed one.
    """

    samples: int
    seconds_per_sample: float
    origin: str = "declared"


Work = Generate | Forward | Train | HostWork | Operations
