"""The second tower: what turns an image into tokens of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Tower:
    """A vision transformer and its projector; sizes in elements.

    Attributes:
        layers: of the transformer.
        hidden: width of the residual stream.
        intermediate: width of the feed-forward layers.
        patches: of an image, the length of its sequence.
        patch: elements of a patch: channels, frames and pixels.
        gated: whether a feed-forward layer has three matrices.
        projector: weights of the matrices behind it, applied to every token that it hands on.
        merged: patches that make one token for the language model.
        windowed: layers whose attention stays within windows.
        window: patches of a window.
        others: weights that are in no product with patches: norms, biases, positions.
    """

    layers: int
    hidden: int
    intermediate: int
    patches: int
    patch: int
    gated: bool = False
    projector: int = 0
    merged: int = 1
    windowed: int = 0
    window: int = 0
    others: int = 0

    @cached_property
    def tokens(self) -> int:
        """That an image takes in the language model's sequence."""
        return self.patches // self.merged

    @cached_property
    def layer(self) -> int:
        """Weights of the matrices of one layer."""
        return 4 * self.hidden**2 + (3 if self.gated else 2) * self.hidden * self.intermediate

    @cached_property
    def parameters(self) -> int:
        """All weights."""
        matrices = self.layers * self.layer + self.patch * self.hidden
        return matrices + self.projector + self.others

    @cached_property
    def flops(self) -> float:
        """Operations of a forward pass over one image; attention looks both ways."""
        matrices = (self.layers * self.layer + self.patch * self.hidden) * self.patches
        whole = (self.layers - self.windowed) * self.patches
        seen = whole + self.windowed * min(self.window, self.patches)
        attention = 2.0 * self.patches * seen * self.hidden
        return 2.0 * (matrices + attention + self.projector * self.tokens)
