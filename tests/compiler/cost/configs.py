"""Configurations of the families that are read: small ones, and published ones."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}
MAMBA = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 8,
    "head_dim": 16,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe"],
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
    "moe_latent_size": 32,
}
TOWER = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1],
}
SMALL = {
    "llama": TINY | {"attention_bias": True, "mlp_bias": True},
    "mistral": TINY | {"sliding_window": 24},
    "phi3": TINY | {"pad_token_id": 0, "sliding_window": 24},
    "qwen2": TINY | {"tie_word_embeddings": True, "use_sliding_window": True},
    "qwen3": TINY | {"head_dim": 32, "tie_word_embeddings": True},
    "qwen2_moe": TINY | EXPERTS | {"shared_expert_intermediate_size": 40},
    "qwen3_moe": TINY | EXPERTS | {"head_dim": 32, "mlp_only_layers": [1]},
    "mixtral": TINY | {"num_local_experts": 8},
    "gemma2": TINY | {"sliding_window": 24},
    "gemma3_text": TINY | {"sliding_window": 24},
    "gpt_oss": TINY | {"head_dim": 16, "num_local_experts": 8, "sliding_window": 24},
    "deepseek_v2": TINY | LATENT,
    "deepseek_v3": TINY | LATENT,
    "llama4_text": TINY
    | {"num_local_experts": 4, "intermediate_size_mlp": 128, "interleave_moe_layer_step": 2},
    "qwen3_next": TINY | EXPERTS | DELTA | {"shared_expert_intermediate_size": 40},
    "qwen3_5_text": TINY | DELTA,
    "nemotron_h": {k: v for k, v in TINY.items() if k != "num_hidden_layers"} | MAMBA,
    "qwen2_5_vl": {"text_config": TINY, "vision_config": TOWER},
}


def sizes(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocab: int) -> dict:
    """The fields that all families have."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
    }


PUBLISHED = {
    "meta-llama/Llama-3.1-8B": ("llama", sizes(32, 4096, 32, 8, 14336, 128256)),
    "mistralai/Mistral-7B-v0.1": ("mistral", sizes(32, 4096, 32, 8, 14336, 32000)),
    "Qwen/Qwen2.5-0.5B": (
        "qwen2",
        sizes(24, 896, 14, 2, 4864, 151936) | {"tie_word_embeddings": True},
    ),
    "Qwen/Qwen3-8B": ("qwen3", sizes(36, 4096, 32, 8, 12288, 151936)),
    "Qwen/Qwen3-30B-A3B": (
        "qwen3_moe",
        sizes(48, 2048, 32, 4, 6144, 151936)
        | {"head_dim": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        | {"num_experts": 128},
    ),
    "mistralai/Mixtral-8x7B-v0.1": (
        "mixtral",
        sizes(32, 4096, 32, 8, 14336, 32000) | {"sliding_window": None},
    ),
    "openai/gpt-oss-20b": (
        "gpt_oss",
        sizes(24, 2880, 64, 8, 2880, 201088) | {"num_local_experts": 32},
    ),
    "deepseek-ai/DeepSeek-V3": ("deepseek_v3", {}),  # the defaults of transformers
}


def made(family: str, fields: dict):
    """The configuration, and its model on the meta device."""
    config = AutoConfig.for_model(family, **fields)
    tower = family == "qwen2_5_vl"
    maker = AutoModelForImageTextToText if tower else AutoModelForCausalLM
    # Of the implementations, this one multiplies with chosen experts only, without reading
    # which on the meta device.
    experts = {"experts_implementation": "batched_mm"} if _mixes(config) else {}
    with torch.device("meta"):
        return config, maker.from_config(config, **experts)


def _mixes(config) -> bool:
    return any("expert" in key for key in config.to_dict())


def counted(model, tokens: int) -> tuple[int, int]:
    """Counted operations of a forward pass over one sequence, and of it and the backward pass.

    The mask is given with four dimensions: transformers then makes none, which would need data.
    """
    with torch.device("meta"):
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
        with FlopCounterMode(display=False) as counter:
            made = model(ids, attention_mask=mask, use_cache=False).logits
            forward = counter.get_total_flops()
            if made.requires_grad:
                made.sum().backward()
    return forward, counter.get_total_flops()
