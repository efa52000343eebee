"""What engines keep on a device besides a model's weights: facts of how they are programmed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Copies:
    """Copies of the logits that live at once.

    Attributes:
        narrow: in the format of the weights; none where that is float32 or wider.
        wide: in float32, or the weights' format where that is wider.
    """

    narrow: int
    wide: int

    def bytes(self, element: int) -> float:
        """Of one logit, where a weight takes `element` bytes."""
        return self.narrow * (element if element < 4 else 0) + self.wide * max(4, element)


@dataclass(frozen=True, eq=False)
class Keeps:
    """What an engine keeps. Each is its own: it is looked up by identity.

    Attributes:
        wide_weights: whether the weights that it trains are float32 and are cast when they are
            gathered; otherwise shorter weights have a float32 master copy.
        by_sequence: whether tensor-parallel ranks share what stands between products, cut by
            sequence (Korthikanti et al. 2022).
        repeats: whether keys and values are repeated for every query head before attention.
        fused: whether a norm, and a gate with its activation, are one kernel each: no copy between
            their steps is kept.
        last_product: whether selective recomputation keeps the output of a layer's last product,
            which nothing reads.
        loss: copies of the logits at the worst moment of training.
        split_loss: the same where tensor-parallel ranks hold a part of the vocabulary each.
        scores: copies at the worst moment of a forward pass.
    """

    wide_weights: bool
    by_sequence: bool
    repeats: bool
    fused: bool
    last_product: bool
    loss: Copies
    split_loss: Copies
    scores: Copies


# torch: log-softmax saves its result; its backward pass has the gradient that comes and the one
# that goes beside it. Without gradients: the logits, their float32 copy, the result. transformers
# leaves the repetition of keys and values to the attention kernel and cuts no sequences.
# megatron: fused kernels of Transformer Engine; one float32 copy, in which the softmax and its
# gradient are made in place (Shoeybi et al. 2019, vocabulary-parallel loss), beside the logits and
# the gradient in their format.
_TORCH = Keeps(
    wide_weights=False,
    by_sequence=False,
    repeats=False,
    fused=False,
    last_product=True,
    loss=Copies(0, 3),
    split_loss=Copies(0, 3),
    scores=Copies(1, 2),
)
KEEPS = {
    "torch": _TORCH,
    "megatron": Keeps(
        wide_weights=False,
        by_sequence=True,
        repeats=False,
        fused=True,
        last_product=True,
        loss=Copies(2, 1),
        split_loss=Copies(2, 1),
        scores=Copies(1, 1),
    ),
}


def keeps_of(engine: str) -> Keeps:
    """What an engine keeps; as torch for one that is not known."""
    return KEEPS.get(engine, _TORCH)
