"""Which parts of the weights of transformers a Megatron parameter holds, name by name.

Nothing is computed: a part is a rectangle of a weight of transformers and a view of a parameter, so
that conversion is exact, copies no more than one part, and needs no other process.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlinf_graph.engines.megatron.architecture import Architecture

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """Where a process stands.

    Attributes:
        tp, tp_size: along tensor parallelism.
        first: the first layer of its pipeline stage.
        expert: the first of its experts.
        expert_tp, expert_tp_size: along the tensor parallelism of experts.
    """

    tp: int = 0
    tp_size: int = 1
    first: int = 0
    expert: int = 0
    expert_tp: int = 0
    expert_tp_size: int = 1


@dataclass(frozen=True)
class Piece:
    """A rectangle of a weight of transformers, in a parameter of Megatron.

    Attributes:
        name: of the weight.
        shape: of the whole weight.
        offsets: where the rectangle begins.
        size: of the rectangle.
        view: of a tensor shaped as the parameter: the elements, in the order of the rectangle.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    size: tuple[int, ...]
    view: View

    def read(self, parameter: Tensor) -> Tensor:
        """The rectangle's values; a copy only where they do not lie together."""
        return self.view(parameter).reshape(self.size)

    def write(self, parameter: Tensor, values: Tensor) -> None:
        """Overwrite them, from the rectangle's values of any type and device."""
        view = self.view(parameter)
        view.copy_(values.reshape(view.shape))

    def of(self, whole: Tensor) -> Tensor:
        """The rectangle of a whole weight."""
        for axis, (start, size) in enumerate(zip(self.offsets, self.size, strict=True)):
            whole = whole.narrow(axis, start, size)
        return whole


def pieces(parameter: str, made: Architecture, place: Place) -> tuple[Piece, ...]:
    """What a parameter of this process's part of `GPTModel` holds; nothing, if all is padding.

    Raises:
        KeyError: for a parameter that no weight of transformers goes into.
    """
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", parameter)
    if match:
        layer = f"{backbone(made)}layers.{place.first + int(match[1])}."
        return _of_layer(match[2], layer, made, place)
    if parameter == "decoder.final_layernorm.weight":
        return (_whole(f"{backbone(made)}norm.weight", (made.hidden,)),)
    if parameter == "embedding.word_embeddings.weight":
        return _vocabulary(embedding(made), made, place)
    if parameter == "output_layer.weight" and made.head == "value":
        return (_whole("head.weight", (1, made.hidden)),)
    if parameter == "output_layer.weight":
        return _vocabulary(embedding(made) if made.tied else "lm_head.weight", made, place)
    raise KeyError(parameter)


def weights_of(made: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of each weight of transformers, by its name in a checkpoint."""
    names = ["embedding.word_embeddings.weight", "decoder.final_layernorm.weight"]
    if not made.tied:
        names.append("output_layer.weight")
    for layer, sparse in enumerate(made.sparse):
        attention = ["linear_qkv.weight", "linear_proj.weight"]
        attention += ["linear_qkv.bias"] if made.qkv_bias else []
        attention += ["q_layernorm.weight", "k_layernorm.weight"] if made.qk_norm else []
        parts = ["mlp."]
        rest = ["input_layernorm.weight", "pre_mlp_layernorm.weight"]
        if sparse:
            parts = [f"mlp.experts.local_experts.{expert}." for expert in range(made.experts)]
            rest.append("mlp.router.weight")
        rest += [f"self_attention.{name}" for name in attention]
        rest += [f"{part}linear_fc{n}.weight" for part in parts for n in (1, 2)]
        names += [f"decoder.layers.{layer}.{name}" for name in rest]
    return {p.name: p.shape for name in names for p in pieces(name, made, Place())}


def backbone(made: Architecture) -> str:
    """What the names of the layers' weights begin with."""
    return "model." if made.head == "lm" else "backbone."


def embedding(made: Architecture) -> str:
    """The name of the embedding."""
    return f"{backbone(made)}embed_tokens.weight"


def _of_layer(rest: str, layer: str, made: Architecture, at: Place) -> tuple[Piece, ...]:
    norms = {
        "input_layernorm.weight": ("input_layernorm.weight", made.hidden),
        "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight", made.hidden),
        "self_attention.q_layernorm.weight": ("self_attn.q_norm.weight", made.head_dim),
        "self_attention.k_layernorm.weight": ("self_attn.k_norm.weight", made.head_dim),
    }
    if rest in norms:
        name, size = norms[rest]
        return (_whole(layer + name, (size,)),)
    if rest in ("self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"):
        return _attention(f"{layer}self_attn.", rest.rpartition(".")[2], made, at)
    if rest == "self_attention.linear_proj.weight":
        shape = (made.hidden, made.heads * made.head_dim)
        return (_cut(f"{layer}self_attn.o_proj.weight", shape, 1, at.tp, at.tp_size),)
    if rest == "mlp.router.weight":
        return (_whole(f"{layer}mlp.gate.weight", (made.experts, made.hidden)),)
    expert = re.fullmatch(r"mlp\.experts\.local_experts\.(\d+)\.(linear_fc\d)\.weight", rest)
    if expert:
        name = f"{layer}mlp.experts.{at.expert + int(expert[1])}."
        sizes = made.hidden, made.expert_ffn, at.expert_tp, at.expert_tp_size
        return _feed_forward(expert[2], name, *sizes)
    dense = re.fullmatch(r"mlp\.(linear_fc\d)\.weight", rest)
    if dense:
        return _feed_forward(dense[1], f"{layer}mlp.", made.hidden, made.ffn, at.tp, at.tp_size)
    raise KeyError(rest)


def _whole(name: str, shape: tuple[int, ...]) -> Piece:
    return Piece(name, shape, (0,) * len(shape), shape, lambda held: held)


def _cut(name: str, shape: tuple[int, int], axis: int, rank: int, ranks: int) -> Piece:
    """An equal part along an axis."""
    size = tuple(n // ranks if a == axis else n for a, n in enumerate(shape))
    offsets = tuple(rank * n if a == axis else 0 for a, n in enumerate(size))
    return Piece(name, shape, offsets, size, lambda held: held)


def _vocabulary(name: str, made: Architecture, at: Place) -> tuple[Piece, ...]:
    """Rows, of which the last rank's last are padding where tp does not divide them."""
    each = -(-made.vocabulary // at.tp_size)
    start = at.tp * each
    rows = min(each, made.vocabulary - start)
    if rows <= 0:
        return ()
    whole, size = (made.vocabulary, made.hidden), (rows, made.hidden)
    return (Piece(name, whole, (start, 0), size, lambda held: held[:rows]),)


def _feed_forward(
    layer: str, name: str, hidden: int, width: int, rank: int, ranks: int
) -> tuple[Piece, ...]:
    """The first layer holds a part of `gate_proj` above the same part of `up_proj`."""
    if layer == "linear_fc2":
        return (_cut(f"{name}down_proj.weight", (hidden, width), 1, rank, ranks),)
    each = width // ranks
    shape, offsets, size = (width, hidden), (rank * each, 0), (each, hidden)
    return (
        Piece(f"{name}gate_proj.weight", shape, offsets, size, lambda held: held[:each]),
        Piece(f"{name}up_proj.weight", shape, offsets, size, lambda held: held[each:]),
    )


def _attention(name: str, kind: str, made: Architecture, at: Place) -> tuple[Piece, ...]:
    """For each group of heads its queries, its key and its value, one below the other."""
    groups, queries = made.groups // at.tp_size, made.heads // made.groups
    rest = (made.hidden,) if kind == "weight" else ()

    def piece(weight: str, first: int, heads: int) -> Piece:
        rows = groups * heads * made.head_dim

        def view(held: Tensor) -> Tensor:
            by_group = held.view(groups, queries + 2, made.head_dim, *rest)
            return by_group[:, first : first + heads]

        offsets = (at.tp * rows, *(0 for _ in rest))
        whole = (rows * at.tp_size, *rest)
        return Piece(f"{name}{weight}.{kind}", whole, offsets, (rows, *rest), view)

    return (
        piece("q_proj", 0, queries),
        piece("k_proj", queries, 1),
        piece("v_proj", queries + 1, 1),
    )
