"""What a transformer is made of, and the weights and operations that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt

from rlinf_graph.compiler.cost.mixer import Mixer
from rlinf_graph.compiler.cost.vision import Tower

Count = TypeVar("Count", float, npt.NDArray[np.float64])


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer; sizes in elements.

    A layer has an attention and a feed-forward part. Hybrids have layers with a recurrent mixer
    in place of attention, and Nemotron's have one part a layer.

    Attributes:
        layers: decoder layers.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: of queries and keys, without the rotary part under latent attention.
        intermediate: width of a dense feed-forward layer.
        vocab: rows of the embedding.
        tied: whether embedding and output head are one matrix.
        qkv_bias: whether query, key and value projections have biases.
        qk_norm: whether queries and keys are normalized by head.
        experts: routed experts of a mixture layer; 0 for a dense model.
        experts_per_token: that a token visits.
        expert_intermediate: width of an expert.
        shared_experts: that every token visits.
        first_dense: layers without experts, leading or in between.
        q_rank: of the query's low-rank projection under latent attention (MLA); 0 without.
        kv_rank: of the latent that is cached under MLA; 0 where keys and values are cached.
        rope_head_dim: rotary part of a head under MLA.
        value_head_dim: of values under MLA; 0 where it is `head_dim`.
        gated: whether a feed-forward layer has three matrices, or two.
        window: tokens that attention looks back at most in `windowed` layers; Llama 4's chunks
            count as windows.
        windowed: layers with that window.
        without_attention: layers without it.
        without_feed_forward: layers without that.
        mixer: the recurrent layers of a hybrid; None without.
        shared_intermediate: width of what every token visits beside the experts, where it is not
            that of `shared_experts`.
        shared_gate: whether a number for each token weighs the shared expert.
        latent: width to which a token is projected for its experts (LatentMoE); 0 without.
        expert_bias: whether the products of experts have biases.
        output_gate: whether attention's output is gated by a second query projection.
        post_norms: whether each part has a norm behind it too.
        other_vectors: further weights that no product uses: biases, positions, sinks.
        towers: vision towers, applied to every image.
        launches: host time to issue a layer, in those that an engine's traits speak of.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_experts: int = 0
    first_dense: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    rope_head_dim: int = 0
    value_head_dim: int = 0
    gated: bool = True
    window: int = 0
    windowed: int = 0
    without_attention: int = 0
    without_feed_forward: int = 0
    mixer: Mixer | None = None
    shared_intermediate: int = 0
    shared_gate: bool = False
    latent: int = 0
    expert_bias: bool = False
    output_gate: bool = False
    post_norms: bool = False
    other_vectors: int = 0
    towers: tuple[Tower, ...] = ()
    launches: ClassVar[float] = 1.0

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Shapes are keys of the scheduler's inner loop, and have many fields.

        None, whose hash differs between processes, is left out: a pickled shape keeps its hash.
        """
        return hash(tuple(getattr(self, field.name) or 0 for field in fields(self)))

    @cached_property
    def attention_layers(self) -> int:
        """Layers with attention: those that have a key-value cache."""
        return self.layers - self.without_attention

    @cached_property
    def feed_forward_layers(self) -> int:
        """Layers with a feed-forward part, dense or of experts."""
        return self.layers - self.without_feed_forward

    @cached_property
    def expert_layers(self) -> int:
        """Layers with experts."""
        return self.feed_forward_layers - self.first_dense if self.experts else 0

    @cached_property
    def query_width(self) -> int:
        """Elements of the queries of a token in one layer."""
        return self.heads * (self.head_dim + self.rope_head_dim)

    @cached_property
    def value_width(self) -> int:
        """Elements of the attention output of a token in one layer."""
        return self.heads * (self.value_head_dim or self.head_dim)

    @cached_property
    def kv_width(self) -> int:
        """Elements a token keeps in the key-value cache of one layer."""
        if self.kv_rank:
            return self.kv_rank + self.rope_head_dim
        return 2 * self.kv_heads * self.head_dim

    @cached_property
    def attention_matrices(self) -> int:
        """Weights of the projections of one layer that a token is multiplied with."""
        out = self.value_width * self.hidden
        if not self.kv_rank:
            queries = self.query_width * (2 if self.output_gate else 1)
            return self.hidden * (queries + self.kv_width) + out
        query = self.hidden * self.query_width
        if self.q_rank:
            query = self.hidden * self.q_rank + self.q_rank * self.query_width
        keys = self.heads * self.head_dim + self.value_width
        return query + self.hidden * self.kv_width + self.kv_rank * keys + out

    @cached_property
    def factors(self) -> int:
        """Matrices of a feed-forward layer."""
        return 3 if self.gated else 2

    @cached_property
    def expert(self) -> int:
        """Weights of one expert."""
        return self.factors * (self.latent or self.hidden) * self.expert_intermediate

    @cached_property
    def shared_width(self) -> int:
        """Width of what every token visits beside the experts."""
        return self.shared_intermediate or self.shared_experts * self.expert_intermediate

    @cached_property
    def visited_width(self) -> int:
        """Width of the feed-forward part that a token goes through in one layer, the widest."""
        mixture = self.experts_per_token * self.expert_intermediate + self.shared_width
        dense = self.feed_forward_layers > self.expert_layers
        return max(mixture if self.experts else 0, self.intermediate if dense else 0)

    @cached_property
    def dense_matrices(self) -> int:
        """Weights of all layers that every token is multiplied with, routers included."""
        dense_layers = self.feed_forward_layers - self.expert_layers
        dense = self.factors * self.hidden * self.intermediate
        every = self.factors * self.hidden * self.shared_width
        every += self.hidden * (self.experts + self.shared_gate + 2 * self.latent)
        mixers = self.mixer.layers * self.mixer.matrices(self.hidden) if self.mixer else 0
        attention = self.attention_layers * self.attention_matrices
        return attention + mixers + dense_layers * dense + self.expert_layers * every

    @cached_property
    def expert_matrices(self) -> int:
        """Weights of all routed experts."""
        return self.expert_layers * self.experts * self.expert

    @cached_property
    def vectors(self) -> int:
        """Norms, biases and what else is in no matrix."""
        mixers = self.mixer.layers if self.mixer else 0
        norms = (self.attention_layers + mixers + self.feed_forward_layers) * self.hidden
        attention = 0
        if self.qkv_bias:
            attention += self.query_width + self.kv_width
        if self.qk_norm:
            attention += 2 * self.head_dim
        if self.kv_rank:
            attention += self.q_rank + self.kv_rank
        total = norms * (2 if self.post_norms else 1) + self.attention_layers * attention
        total += mixers * self.mixer.others if self.mixer else 0
        return total + self.hidden + self.other_vectors

    @cached_property
    def vision(self) -> int:
        """Weights of the vision towers and their projectors."""
        return sum(tower.parameters for tower in self.towers)

    @cached_property
    def vision_tokens(self) -> int:
        """Tokens of an image; several towers see it side by side."""
        return max((tower.tokens for tower in self.towers), default=0)

    def head_matrix(self, head: str) -> int:
        """Weights that a hidden state is multiplied with for an output: logits, or one number."""
        return self.vocab * self.hidden if head == "lm" else self.hidden

    def parameters(self, head: str = "lm") -> int:
        """All weights; those of a tied matrix are counted once."""
        shared = self.tied and head == "lm"
        ends = self.vocab * self.hidden + (0 if shared else self.head_matrix(head))
        body = self.dense_matrices + self.expert_matrices + self.vectors
        return body + ends + self.vision

    @cached_property
    def active_matrices(self) -> int:
        """Weights of the layers that one token is multiplied with."""
        return self.dense_matrices + self.expert_layers * self.experts_per_token * self.expert

    def reach(self, context: Count) -> Count:
        """Tokens that one attends to in all attention layers together, windows kept."""
        if not self.windowed:
            return self.attention_layers * context
        near = cast("Count", np.minimum(context, self.window))
        return (self.attention_layers - self.windowed) * context + self.windowed * near

    @cached_property
    def pair_flops(self) -> float:
        """Operations of one layer's attention for a token and one that it attends to."""
        return 2.0 * (self.query_width + self.value_width)

    @cached_property
    def token_flops(self) -> float:
        """Operations of the layers for one token, attention left out."""
        return 2.0 * self.active_matrices + self.scan_flops

    def attention_flops(self, context: Count) -> Count:
        """Operations of all layers for one token that attends to `context` tokens."""
        return self.pair_flops * self.reach(context)

    def decode_attention_flops(self, context: Count) -> Count:
        """The same when decoding; latent attention then works on the cached latents."""
        if not self.kv_rank:
            return self.attention_flops(context)
        latent = self.heads * (2 * self.kv_rank + self.rope_head_dim)
        return 2.0 * latent * self.reach(context)

    def step_flops(self, context: Count, head: str = "lm") -> Count:
        """Operations of a decode step for one sequence of so many tokens."""
        token = self.token_flops + 2.0 * self.head_matrix(head)
        return token + self.decode_attention_flops(context)

    def cached(self, context: Count) -> Count:
        """Elements that a sequence keeps in all layers: keys, values and recurrent states."""
        state = self.mixer.cached if self.mixer else 0
        return self.kv_width * self.reach(context) + state

    @cached_property
    def scan_flops(self) -> float:
        """Operations of all recurrent layers for one token, besides their matrices."""
        return self.mixer.scan_flops if self.mixer else 0.0

    def causal_flops(self, tokens: float, squares: float) -> float:
        """Operations of attention over whole sequences, each token looking back.

        Half of the square, and in windowed layers the band below the diagonal, where lengths that
        differ are taken at their mean over tokens.
        """
        if not self.windowed or not tokens:
            return self.pair_flops * self.attention_layers * 0.5 * squares
        pairs = (self.attention_layers - self.windowed) * 0.5 * squares
        length = squares / tokens
        seen = min(self.window, length)
        pairs += self.windowed * tokens * (seen - seen**2 / (2 * length))
        return self.pair_flops * pairs

    def forward_flops(self, tokens: float, squares: float, outputs: float, head: str) -> float:
        """Operations of a forward pass; a multiplication and an addition are two.

        Args:
            tokens: of all sequences.
            squares: sum of the squared lengths. Attention is causal: half of the square.
            outputs: positions that go through the head.
            head: `lm`, `value` or `score`.

        Source: Kaplan et al. 2020, appendix B, with the attention term halved.
        """
        matrices = self.token_flops * tokens + 2.0 * self.head_matrix(head) * outputs
        return matrices + self.causal_flops(tokens, squares)

    def image_flops(self, images: float) -> float:
        """Operations of the vision towers."""
        return sum(tower.flops for tower in self.towers) * images if self.towers else 0.0
