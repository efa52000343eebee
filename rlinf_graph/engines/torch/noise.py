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


def gumbel(stream: int, index: Tensor, position: int, size: int) -> Tensor:
    """Standard Gumbel noise, finite.

    Args:
        stream: from `key_stream`.
        index: int64 `(n,)`, of the samples in the iteration.
        position: of the token in its response.
        size: entries of the vocabulary.

    Returns:
        float64 `(n, size)`; an element depends on the stream, its sample's index, the position
        and its entry only.
    """
    rows = _mixed(_mixed(index * GOLDEN + stream) + _signed(position * GOLDEN))
    return uniform_to_gumbel(_uniform(rows, size))


def uniform(stream: int, index: Tensor, positions: Tensor, size: int) -> Tensor:
    """Uniform noise, float64 `(positions, n, size)` inside (0, 1), keyed as `gumbel`'s."""
    rows = _mixed(index * GOLDEN + stream) + positions[:, None] * GOLDEN
    return _uniform(_mixed(rows), size)


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
