import tomllib
from pathlib import Path

import pytest

from rlinf_graph.compiler.cost.lookup import known_models, read_config, shape_of
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.ir import hardware
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import ModelDef

ALIASES = Path(__file__).parents[3] / "benchmarks" / "data" / "model_aliases.toml"

# Parameter counts that the Hugging Face hub shows for the safetensors files. Stored twice there,
# and counted once here: the tied matrices of Qwen3-0.6B and 1.7B (their cards say 0.6B and 1.7B).
# DeepSeek-V3: 671B of its card, without the 14B of multi-token prediction. Llama 4: their cards'
# 109B and 400B, without the vision tower of 0.9B. Qwen3.5-9B: its name, without the tower. GPT-3:
# Brown et al. 2020. GPT-177B, 583M, 16B: Megatron-LM's names. Hybrid-2B: its name, and both ends.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494.0e6,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.544e9,
    "Qwen/Qwen2.5-3B": 3.086e9,
    "Qwen/Qwen2.5-7B-Instruct": 7.616e9,
    "Qwen/Qwen2.5-Math-7B": 7.616e9,
    "Qwen/Qwen2.5-14B": 14.77e9,
    "Qwen/Qwen2.5-32B": 32.76e9,
    "Qwen/Qwen2.5-72B": 72.71e9,
    "Qwen/Qwen3-0.6B": 0.596e9,
    "Qwen/Qwen3-1.7B": 1.72e9,
    "Qwen/Qwen3-4B": 4.02e9,
    "Qwen/Qwen3-8B": 8.19e9,
    "Qwen/Qwen3-14B": 14.8e9,
    "Qwen/Qwen3-32B": 32.8e9,
    "Qwen/Qwen3-30B-A3B": 30.5e9,
    "Qwen/Qwen3-235B-A22B": 235e9,
    "meta-llama/Llama-3.1-8B": 8.03e9,
    "meta-llama/Llama-3.1-70B": 70.6e9,
    "meta-llama/Llama-3.2-1B": 1.24e9,
    "meta-llama/Llama-3.2-3B": 3.21e9,
    "mistralai/Mistral-7B-v0.1": 7.24e9,
    "mistralai/Mistral-7B-v0.3": 7.25e9,
    "mistralai/Mistral-7B-Instruct-v0.2": 7.24e9,
    "mistralai/Mixtral-8x7B-v0.1": 46.7e9,
    "meta-llama/Llama-3.1-405B": 405.9e9,
    "meta-llama/Llama-2-7b-hf": 6.74e9,
    "meta-llama/Llama-2-13b-hf": 13.02e9,
    "codellama/CodeLlama-34b-hf": 33.7e9,
    "meta-llama/Llama-2-70b-hf": 68.98e9,
    "meta-llama/Llama-4-Scout-17B-16E": 108.6e9 - 0.9e9,
    "meta-llama/Llama-4-Maverick-17B-128E": 401.6e9 - 0.9e9,
    "openai/gpt-oss-20b": 20.9e9,
    "openai/gpt-oss-120b": 116.8e9,
    "moonshotai/Kimi-K2-Base": 1026e9,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 79.7e9,
    "Qwen/Qwen3.5-9B": 9e9,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.755e9,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.292e9,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31.6e9,
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16": 120.6e9,
    "nvidia/Nemotron-H-8B-Base-8K": 8.1e9,
    "openai/gpt-3-175b": 174.6e9,
    "Megatron-LM/GPT-177B": 177e9,
    "Megatron-LM/GPT-583M": 583e6,
    "Megatron-LM/DeepSeek-style-16B": 16e9,
    "Megatron-LM/Hybrid-2B": 2.337e9 + 2 * 131072 * 2048,
    "deepseek-ai/DeepSeek-V2-Lite": 15.7e9,
    "deepseek-ai/DeepSeek-V3": 671e9,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1.78e9,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8.03e9,
    "openvla/openvla-7b": 7.54e9,
}


def shape(path: str) -> ModelShape:
    return shape_of(ModelDef("m", path))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name: str) -> None:
    assert shape(name).parameters() == pytest.approx(PUBLISHED[name], rel=0.01)


def test_every_shape_is_compared_with_a_published_count() -> None:
    assert {shape(name) for name in PUBLISHED} == set(known_models().values())


def test_a_score_head_takes_the_place_of_the_output_matrix() -> None:
    # Skywork-Reward-V2-Llama-3.1-8B on the hub: 7.5B
    judge = shape("Skywork/Skywork-Reward-V2-Llama-3.1-8B")
    assert judge.parameters("score") == pytest.approx(7.505e9, rel=0.001)


@pytest.mark.parametrize(
    ("name", "active", "ends"),
    [  # activated parameters of the model cards; which count one end, both or none
        ("Qwen/Qwen3-30B-A3B", 3.3e9, 2),
        ("Qwen/Qwen3-235B-A22B", 22e9, 2),
        ("deepseek-ai/DeepSeek-V3", 37e9, 2),
        ("moonshotai/Kimi-K2-Base", 32e9, 1),
        ("meta-llama/Llama-4-Scout-17B-16E", 17e9, 2),
        ("meta-llama/Llama-4-Maverick-17B-128E", 17e9, 2),
        ("openai/gpt-oss-20b", 3.6e9, 1),
        ("openai/gpt-oss-120b", 5.1e9, 1),
        ("mistralai/Mixtral-8x7B-v0.1", 12.9e9, 2),
        ("deepseek-ai/DeepSeek-V2-Lite", 2.4e9, 1),
        ("Megatron-LM/DeepSeek-style-16B", 2.8e9, 2),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 3.2e9, 1),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", 12e9, 1),
    ],
)
def test_active_parameters_are_those_published(name: str, active: float, ends: int) -> None:
    known = shape(name)
    counted = known.active_matrices + ends * known.vocab * known.hidden
    assert counted == pytest.approx(active, rel=0.03)


def test_every_published_model_has_a_shape_or_a_reason() -> None:
    table = tomllib.loads(ALIASES.read_text("utf-8"))
    for canonical, spelled in table["models"].items():
        assert canonical in known_models()
        assert not set(spelled) & set(table["unknown"])
    for device, spelled in table["devices"].items():
        assert hardware.find(device), spelled
    shapes = [shape(canonical) for canonical in table["models"]]
    assert len(set(shapes)) == len(shapes), "two names of one shape are one model"


def test_names_are_found_in_any_case_and_from_any_mirror() -> None:
    assert shape("qwen/qwen2.5-7b-instruct") == shape("mirror/Qwen2.5-7B") == shape("Qwen2.5-7B")


def test_an_unknown_name_is_refused_with_close_ones() -> None:
    with pytest.raises(CompileError) as caught:
        shape("Qwen/Qwen2.5-7B-Instrct")
    assert str(caught.value) == (
        "error[RG0404]: the shape of `Qwen/Qwen2.5-7B-Instrct` is not known\n"
        "  = note: close to it: Qwen/Qwen2.5-7B-Instruct, Qwen/Qwen2.5-72B-Instruct, "
        "Qwen/Qwen2.5-3B-Instruct\n"
        "  = help: give a folder that holds the model's `config.json`"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "bert"}', "models of type `bert` cannot be costed yet"),
        ('{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}', "has no field"),
        ("[", "is no model configuration"),
        ("[]", "is no model configuration"),
        ('{"model_type": "llama", "hidden_size": "8", "num_attention_heads": 2}', "is no model"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CompileError, match=rf"RG0404.*{message}"):
        shape(str(tmp_path))


TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES = {
    "qwen2": TINY,
    "qwen3": TINY | {"head_dim": 32, "tie_word_embeddings": True},
    "llama": TINY | {"attention_bias": False},
    "mistral": TINY,
    "qwen3_moe": TINY | EXPERTS | {"num_experts": 8, "head_dim": 32, "mlp_only_layers": [1]},
    "deepseek_v3": TINY
    | EXPERTS
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_gives_the_parameters_of_its_model(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **FAMILIES[family])
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = read_config(tmp_path / "config.json").parameters()
    assert counted == sum(p.numel() for p in model.parameters())


def test_operations_agree_with_counted_ones() -> None:
    """FlopCounterMode counts attention as a full square; causal attention needs half of it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    known, tokens = shape("Qwen/Qwen2.5-0.5B"), 2048
    with torch.device("meta"):
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=known.vocab,
                hidden_size=known.hidden,
                intermediate_size=known.intermediate,
                num_hidden_layers=known.layers,
                num_attention_heads=known.heads,
                num_key_value_heads=known.kv_heads,
                tie_word_embeddings=True,
            )
        )
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids, attention_mask={"full_attention": None}, use_cache=False)
    causal = known.forward_flops(tokens, tokens**2, tokens, "lm")
    half_square = known.attention_flops(0.5) * tokens**2
    assert half_square / causal > 0.05
    assert causal + half_square == pytest.approx(counter.get_total_flops(), rel=0.01)
