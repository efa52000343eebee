"""Random numbers by name: each is a hash of what it is for, so no draw depends on another.

The hash is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"): a counter in steps of an odd constant, and a mixing function that is a bijection of
64-bit words. Words are int64 tensors, whose sums and products wrap around.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from rlinf_graph.nodes.engine import Key

BLOCK = 1 << 16
"""Numbers that are made together; one call for each position would take a small model long."""

BITS = 52  # of a draw: with half a step added, every value is exact in float64 and inside (0, 1)


def _signed(word: int) -> int:
    """The low 64 bits as a signed number."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def stream(*names: object) -> int:
    """A signed 64-bit word that stands for `names`, the same on every machine."""
    text = "\0".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def key_stream(key: Key) -> int:
    """The stream of a node's draws in an iteration, at a place in the loops around it."""
    return stream(key.seed, key.node, key.iteration, *key.steps)


def uniform(stream: int, index: Tensor, positions: Tensor, size: int) -> Tensor:
    """Uniform noise inside (0, 1).

    Args:
        stream: from `key_stream`.
        index: int64 `(n,)`, of the samples in the iteration.
        positions: int64 `(p,)`, of tokens in their responses, or of steps.
        size: entries of the vocabulary, or numbers of an action.

    Returns:
        float64 `(p, n, size)`; an element depends on the stream, its sample's index, its position
        and its entry only.
    """
    rows = _mixed(index * GOLDEN + stream) + positions[:, None] * GOLDEN
    return _uniform(_mixed(rows), size)


class TokenNoise:
    """The Gumbel noise of the tokens of responses, some positions of it at once.

    Args:
        stream: from `key_stream`.
        limit: positions of a response.
    """

    def __init__(self, stream: int, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._index: Tensor | None = None
        self._first = 0
        self._block = torch.empty(0, 0, 0)

    def at(self, index: Tensor, position: int, size: int) -> Tensor:
        """Standard Gumbel noise, finite: float64 `(n, size)`, not to be changed in place.

        Args:
            index: int64 `(n,)`; the same tensor for as long as it has the same samples.
            position: of the token in its response.
            size: entries of the vocabulary.
        """
        place = position - self._first
        if index is not self._index or not 0 <= place < len(self._block):
            count = min(self._limit - position, BLOCK // max(1, len(index) * size))
            positions = torch.arange(position, position + max(1, count), device=index.device)
            self._block = uniform_to_gumbel(uniform(self._stream, index, positions, size))
            self._index, self._first, place = index, position, 0
        return self._block[place]


def uniform_to_gumbel(uniform: Tensor) -> Tensor:
    """Uniform noise made Gumbel noise, in place."""
    return uniform.log_().neg_().log_().neg_()


def _uniform(rows: Tensor, size: int) -> Tensor:
    """Inside (0, 1), for words `(...)`: float64 `(..., size)`."""
    counter = torch.arange(1, size + 1, device=rows.device) * GOLDEN
    words = _mixed(rows[..., None] + counter)
    return _shifted(words, 64 - BITS).double().add_(0.5).mul_(2.0**-BITS)


def _mixed(words: Tensor) -> Tensor:
    """The mixing function of SplitMix64, variant 13 of Stafford."""
    words = words ^ _shifted(words, 30)
    words.mul_(FIRST)
    words.bitwise_xor_(_shifted(words, 27)).mul_(SECOND)
    return words.bitwise_xor_(_shifted(words, 31))


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of int64 fills with the sign."""
    return (words >> by).bitwise_and_((1 << (64 - by)) - 1)
