"""Recurrent layers: Mamba-2 and the gated delta rule, in the terms that a cost needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Mixer:
    """A layer that carries a state of fixed size from token to token, in place of attention.

    Queries and keys (C and B of Mamba-2) and values (x) go through a short convolution; a gate as
    wide as the values closes the layer. Sizes in elements.

    Attributes:
        layers: of this kind in the model.
        values: width of the values of a token, all heads together.
        keys: width of its keys; its queries are as wide.
        state: elements that each element of the values has in the state: the key's head.
        gates: further outputs of the projection of a token: time steps, decay, write strength.
        products: of the state with a vector for a token, the update included: 2 of Mamba-2,
            3 of the gated delta rule.
        vectors: weights of a layer that are in no matrix: norms, biases, decays.
        kernel: width of the convolution.

    Source: Dao and Gu 2024 (Mamba-2), Yang et al. 2025 (gated delta networks).
    """

    layers: int
    values: int
    keys: int
    state: int
    gates: int
    products: int
    vectors: int
    kernel: int = 4

    @cached_property
    def convolved(self) -> int:
        """Elements of a token that go through the convolution."""
        return self.values + 2 * self.keys

    def matrices(self, hidden: int) -> int:
        """Weights of the projections of one layer."""
        return hidden * (self.convolved + self.values + self.gates) + self.values * hidden

    @cached_property
    def others(self) -> int:
        """Weights of one layer besides."""
        return self.kernel * self.convolved + self.vectors

    @cached_property
    def cached(self) -> int:
        """Elements that all layers keep of a sequence, however long it is."""
        return self.layers * (self.values * self.state + (self.kernel - 1) * self.convolved)

    @cached_property
    def scan_flops(self) -> float:
        """Operations of all layers for one token besides the projections, token by token."""
        scan = self.products * self.values * self.state
        return 2.0 * self.layers * (scan + self.kernel * self.convolved)
