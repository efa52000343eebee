"""From the fields of a Hugging Face configuration to a shape, one function a family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from rlinf_graph.compiler.cost.mixer import Mixer
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.compiler.cost.vision import Tower

Config = dict[str, Any]
Sizes = dict[str, Any]

PATCHES = 1024
"""Patches of an image where a tower takes any size: 448 x 448 pixels at 14 a patch."""

HEAD_DIMS = {"qwen3": 128, "gemma2": 256, "gemma3_text": 256, "qwen3_next": 256}
TIED = ("gemma2", "gemma3_text")  # the default of transformers, which such files leave out


def shape_of_config(config: Config) -> ModelShape:
    """The shape that a configuration of a known family describes.

    Raises:
        KeyError: a field is missing, or `model_type` is none of `FAMILIES`.
        TypeError, ValueError: a field is of another kind.
    """
    family = FAMILIES[config["model_type"]]
    config = config | cast("Config", config.get("text_config") or {}) | _outer(config)
    return ModelShape(**(_common(config) | family(config)))


def _outer(config: Config) -> Config:
    """What the outer configuration of a model with a tower says of both."""
    return {key: config[key] for key in ("model_type", "tie_word_embeddings") if key in config}


def _common(config: Config) -> Sizes:
    family = config["model_type"]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return {
        "layers": config.get("num_hidden_layers", 0),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or HEAD_DIMS.get(family) or hidden // heads,
        "intermediate": config["intermediate_size"],
        "vocab": config["vocab_size"],
        "tied": bool(config.get("tie_word_embeddings", family in TIED)),
        "qkv_bias": bool(config.get("attention_bias", False)),
    }


def _kinds(config: Config, default: Callable[[int], bool], name: str = "sliding_attention") -> int:
    """Layers of a kind: as `layer_types` lists them, else those for which `default` holds."""
    layers: int = config["num_hidden_layers"]
    listed = cast("Sequence[str] | None", config.get("layer_types"))
    return list(listed).count(name) if listed else sum(default(i) for i in range(layers))


def _windows(config: Config, default: Callable[[int], bool]) -> Sizes:
    """Layers with a sliding window."""
    window = config.get("sliding_window")
    if not window:
        return {}
    windowed = _kinds(config, default)
    return {"window": window, "windowed": windowed} if windowed else {}


def _everywhere(_layer: int) -> bool:
    return True


def _llama(config: Config) -> Sizes:
    # attention_bias and mlp_bias of Llama reach the output projections too.
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    biases = hidden if config.get("attention_bias") else 0
    biases += 2 * config["intermediate_size"] + hidden if config.get("mlp_bias") else 0
    return {"other_vectors": layers * biases}


def _mistral(config: Config) -> Sizes:
    return _windows(config, _everywhere)


def _qwen2(config: Config) -> Sizes:
    sizes: Sizes = {"qkv_bias": True}
    if config.get("use_sliding_window"):
        first = config.get("max_window_layers", 28)
        sizes |= _windows(config, lambda layer: layer >= first)
    return sizes


def _qwen3(config: Config) -> Sizes:
    return _qwen2(config) | {"qkv_bias": bool(config.get("attention_bias")), "qk_norm": True}


def _experts(config: Config, number: str = "num_experts") -> Sizes:
    every, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    layers = range(config["num_hidden_layers"])
    return {
        # transformers 5 writes the second name.
        "experts": config.get(number) or config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "expert_intermediate": config.get("moe_intermediate_size") or config["intermediate_size"],
        "first_dense": sum(1 for i in layers if i in dense or (i + 1) % every),
    }


def _qwen2_moe(config: Config) -> Sizes:
    shared = {
        "shared_intermediate": config["shared_expert_intermediate_size"],
        "shared_gate": True,
    }
    return _qwen2(config) | {"qkv_bias": config.get("qkv_bias", True)} | _experts(config) | shared


def _qwen3_moe(config: Config) -> Sizes:
    return _qwen3(config) | _experts(config)


def _mixtral(config: Config) -> Sizes:
    return _windows(config, _everywhere) | _experts(config)


def _gemma(config: Config) -> Sizes:
    third = config["model_type"] == "gemma3_text"
    every = config.get("sliding_window_pattern", 6 if third else 2)
    windows = _windows(config, lambda layer: bool((layer + 1) % every))
    return windows | {"post_norms": True, "qk_norm": third}


def _gpt_oss(config: Config) -> Sizes:
    hidden, experts = config["hidden_size"], config["num_local_experts"]
    # Biases of the output projection, router and experts, and a sink for each head.
    biases = hidden + config["num_attention_heads"] + experts
    biases += experts * (2 * config["intermediate_size"] + hidden)
    windows = _windows(config, lambda layer: layer % 2 == 0)
    others = {
        "qkv_bias": True,
        "expert_bias": True,
        "other_vectors": config["num_hidden_layers"] * biases,
    }
    return _experts(config) | windows | others


def _deepseek(config: Config) -> Sizes:
    return {
        "head_dim": config["qk_nope_head_dim"],
        "rope_head_dim": config["qk_rope_head_dim"],
        "value_head_dim": config["v_head_dim"],
        "q_rank": config["q_lora_rank"] or 0,
        "kv_rank": config["kv_lora_rank"],
        "qkv_bias": False,
        "experts": config["n_routed_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "expert_intermediate": config["moe_intermediate_size"],
        "shared_experts": config["n_shared_experts"] or 0,
        "first_dense": config["first_k_dense_replace"],
    }


def _llama4(config: Config) -> Sizes:
    layers, every = config["num_hidden_layers"], config.get("interleave_moe_layer_step", 1)
    mixtures = config.get("moe_layers") or range(every - 1, layers, every)
    rope = config.get("no_rope_layer_interval", 4)
    chunk = config.get("attention_chunk_size") or 0
    near = _kinds(config, lambda layer: bool((layer + 1) % rope), "chunked_attention")
    return {
        "intermediate": config["intermediate_size_mlp"],
        "experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "expert_intermediate": config["intermediate_size"],
        "shared_experts": 1,
        "first_dense": layers - len(mixtures),
        "window": chunk,
        "windowed": near if chunk else 0,
    }


def _gated_delta(config: Config) -> Sizes:
    """Qwen3-Next and Qwen3.5: three layers of the gated delta rule, one of gated attention."""
    linear = _kinds(config, lambda layer: bool((layer + 1) % 4), "linear_attention")
    heads, size = config["linear_num_value_heads"], config["linear_value_head_dim"]
    mixer = Mixer(
        layers=linear,
        values=heads * size,
        keys=config["linear_num_key_heads"] * config["linear_key_head_dim"],
        state=config["linear_key_head_dim"],
        gates=2 * heads,
        products=3,
        vectors=2 * heads + size,
        kernel=config["linear_conv_kernel_dim"],
    )
    return {"without_attention": linear, "mixer": mixer, "qk_norm": True, "output_gate": True}


def _qwen3_next(config: Config) -> Sizes:
    return _qwen2_moe(config) | {"qkv_bias": False} | _gated_delta(config)


def _nemotron_h(config: Config) -> Sizes:
    """One part a layer: Mamba-2 (`M`), attention (`*`), a feed-forward layer (`-`) or experts."""
    names = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
    listed = config.get("layers_block_type")
    kinds = listed or [names[letter] for letter in config["hybrid_override_pattern"]]
    layers, count = len(kinds), kinds.count
    heads, size = config["mamba_num_heads"], config["mamba_head_dim"]
    keys = config["n_groups"] * config["ssm_state_size"]
    mixer = Mixer(
        layers=count("linear_attention"),
        values=heads * size,
        keys=keys,
        state=config["ssm_state_size"],
        gates=heads,
        products=2,
        # Biases of the convolution; time step, decay and skip of every head; a norm.
        vectors=heads * size + 2 * keys + 3 * heads + heads * size,
        kernel=config.get("conv_kernel", 4),
    )
    sizes: Sizes = {
        "layers": layers,
        "gated": False,
        "without_attention": layers - count("full_attention"),
        "without_feed_forward": layers - count("mlp") - count("moe"),
        "mixer": mixer,
    }
    if not count("moe"):
        return sizes
    return sizes | {
        "experts": config["n_routed_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "expert_intermediate": config["moe_intermediate_size"],
        "shared_intermediate": config["moe_shared_expert_intermediate_size"],
        "latent": config.get("moe_latent_size") or 0,
        "first_dense": count("mlp"),
    }


def _qwen2_5_vl(config: Config) -> Sizes:
    seen = config["vision_config"]
    depth, inner, merge = seen["depth"], seen["intermediate_size"], seen["spatial_merge_size"]
    hidden, made = seen["hidden_size"], config["hidden_size"]
    channels = seen.get("in_channels") or seen.get("in_chans") or 3
    whole = hidden * merge**2  # width of the patches that are merged
    tower = Tower(
        layers=depth,
        hidden=hidden,
        intermediate=inner,
        patches=PATCHES,
        patch=channels * seen["temporal_patch_size"] * seen["patch_size"] ** 2,
        gated=True,
        projector=whole * (whole + made),
        merged=merge**2,
        windowed=depth - len(seen["fullatt_block_indexes"]),
        window=(seen["window_size"] // seen["patch_size"]) ** 2,
        # Two norms and the biases of every layer; of the projector a norm and two biases.
        others=depth * (2 * hidden + 4 * hidden + 2 * inner + hidden) + hidden + whole + made,
    )
    return _qwen2(config) | {"towers": (tower,)}


FAMILIES: dict[str, Callable[[Config], Sizes]] = {
    "llama": _llama,
    "mistral": _mistral,
    "phi3": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "llama4_text": _llama4,
    "qwen3_next": _qwen3_next,
    "qwen3_5_text": _gated_delta,
    "nemotron_h": _nemotron_h,
    "qwen2_5_vl": _qwen2_5_vl,
}
"""By the `model_type` of the configuration. Kimi K2's is DeepSeek-V3's under another name."""
