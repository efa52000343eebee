"""What a transformer is made of, and the weights and operations that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer with gated feed-forward layers; sizes in elements.

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
        first_dense: leading layers without experts.
        q_rank: of the query's low-rank projection under latent attention (MLA); 0 without.
        kv_rank: of the latent that is cached under MLA; 0 where keys and values are cached.
        rope_head_dim: rotary part of a head under MLA.
        value_head_dim: of values under MLA; 0 where it is `head_dim`.
        vision: weights of a vision tower and its projector, applied once to every image.
        vision_tokens: patches of an image.
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
    vision: int = 0
    vision_tokens: int = 0
    launches: ClassVar[float] = 1.0

    @cached_property
    def expert_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.first_dense if self.experts else 0

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
            return self.hidden * (self.query_width + self.kv_width) + out
        query = self.hidden * self.query_width
        if self.q_rank:
            query = self.hidden * self.q_rank + self.q_rank * self.query_width
        keys = self.heads * self.head_dim + self.value_width
        return query + self.hidden * self.kv_width + self.kv_rank * keys + out

    @cached_property
    def expert(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden * self.expert_intermediate

    @cached_property
    def dense_matrices(self) -> int:
        """Weights of all layers that every token is multiplied with, routers included."""
        feed_forward = 3 * self.hidden * self.intermediate * (self.layers - self.expert_layers)
        every = self.shared_experts * self.expert + self.hidden * self.experts
        return self.layers * self.attention_matrices + feed_forward + self.expert_layers * every

    @cached_property
    def expert_matrices(self) -> int:
        """Weights of all routed experts."""
        return self.expert_layers * self.experts * self.expert

    @cached_property
    def vectors(self) -> int:
        """Norms and biases."""
        layer = 2 * self.hidden
        if self.qkv_bias:
            layer += self.query_width + self.kv_width
        if self.qk_norm:
            layer += 2 * self.head_dim
        if self.kv_rank:
            layer += self.q_rank + self.kv_rank
        return self.layers * layer + self.hidden

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

    def attention_flops(self, context: float) -> float:
        """Operations of all layers for one token that attends to `context` tokens."""
        return 2.0 * self.layers * context * (self.query_width + self.value_width)

    def decode_attention_flops(self, context: float) -> float:
        """The same when decoding; latent attention then works on the cached latents."""
        if not self.kv_rank:
            return self.attention_flops(context)
        latent = self.heads * (2 * self.kv_rank + self.rope_head_dim)
        return 2.0 * self.layers * context * latent

    def forward_flops(self, tokens: float, squares: float, outputs: float, head: str) -> float:
        """Operations of a forward pass; a multiplication and an addition are two.

        Args:
            tokens: of all sequences.
            squares: sum of the squared lengths. Attention is causal: half of the square.
            outputs: positions that go through the head.
            head: `lm`, `value` or `score`.

        Source: Kaplan et al. 2020, appendix B, with the attention term halved.
        """
        matrices = 2.0 * self.active_matrices * tokens + 2.0 * self.head_matrix(head) * outputs
        return matrices + self.attention_flops(0.5) * squares

    def image_flops(self, images: float) -> float:
        """Operations of the vision tower, attention left out (5 % at 256 patches)."""
        return 2.0 * self.vision * self.vision_tokens * images
