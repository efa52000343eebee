"""What a configuration of transformers says, as far as Megatron's GPTModel can follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder.

    Attributes:
        head: `lm`, or `value` for one number a token.
        layers, hidden, heads, groups, head_dim, vocabulary: sizes; `groups` are key-value heads.
        ffn: width of a dense layer's feed-forward part.
        norm_eps: of the RMS norms.
        qkv_bias: whether query, key and value have biases.
        qk_norm: whether queries and keys are normalized.
        tied: whether the embedding is the output layer too.
        sparse: for each layer, whether it is a mixture of experts.
        experts, chosen, expert_ffn: of a mixture; how many a token goes to; width of one.
        normalized: whether the weights of a token's experts add up to 1.
        frequencies: float32 `(head_dim / 2,)`, of the rotary embedding.
    """

    head: str
    layers: int
    hidden: int
    heads: int
    groups: int
    head_dim: int
    vocabulary: int
    ffn: int
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    tied: bool
    sparse: tuple[bool, ...]
    experts: int
    chosen: int
    expert_ffn: int
    normalized: bool
    frequencies: Tensor


def architecture_of(config: PretrainedConfig, model: ModelDef) -> Architecture:
    """What the configuration says.

    Args:
        config: of transformers.
        model: its head decides what is on top; the rest is for messages.

    Raises:
        CompileError: RG0503, for another family, and for what Megatron's layers do not do.
    """
    family = config.model_type
    if family not in FAMILIES:
        raise fail(
            "RG0503",
            f"the megatron engine does not know `{family}`, the architecture of `{model.name}`",
            model.span,
            notes=("it knows " + ", ".join(FAMILIES),),
            help=('train it with the torch engine: train="torch"',),
        )
    given: Any = config
    rotary = LlamaRotaryEmbedding(given)
    for refused, what in (
        (family != "qwen2" and getattr(given, "attention_bias", False), "attention biases"),
        (getattr(given, "mlp_bias", False), "biases in feed-forward layers"),
        (any(kind != "full_attention" for kind in getattr(given, "layer_types", None) or ()),
         "sliding-window attention"),
        (rotary.attention_scaling != 1 or "dynamic" in str(rotary.rope_type),
         f"rotary embeddings of type {rotary.rope_type}"),
        (given.hidden_act != "silu", f"the activation {given.hidden_act}"),
    ):  # fmt: skip
        if refused:
            raise fail(
                "RG0503",
                f"the megatron engine has no {what}, which `{model.name}` needs",
                model.span,
                help=('train it with the torch engine: train="torch"',),
            )
    mixture = family == "qwen3_moe"
    return Architecture(
        head=model.head,
        layers=given.num_hidden_layers,
        hidden=given.hidden_size,
        heads=given.num_attention_heads,
        groups=given.num_key_value_heads,
        head_dim=getattr(given, "head_dim", None) or given.hidden_size // given.num_attention_heads,
        vocabulary=given.vocab_size,
        ffn=given.intermediate_size,
        norm_eps=given.rms_norm_eps,
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "qwen3_moe"),
        tied=bool(given.tie_word_embeddings) and model.head == "lm",
        sparse=_sparse(given) if mixture else (False,) * given.num_hidden_layers,
        experts=given.num_experts if mixture else 0,
        chosen=given.num_experts_per_tok if mixture else 0,
        expert_ffn=given.moe_intermediate_size if mixture else 0,
        normalized=bool(given.norm_topk_prob) if mixture else False,
        frequencies=rotary.inv_freq.detach().float(),
    )


def _sparse(config: Any) -> tuple[bool, ...]:
    """As `Qwen3MoeDecoderLayer` of transformers decides it."""
    return tuple(
        layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0
        for layer in range(config.num_hidden_layers)
    )
