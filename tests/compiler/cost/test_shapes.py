import tomllib
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from rlinf_graph.compiler.cost.configs import FAMILIES, shape_of_config
from rlinf_graph.compiler.cost.lookup import known_models, read_config, shape_of
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.ir import hardware
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import ModelDef
from tests.compiler.cost.configs import PUBLISHED, SMALL, made

ALIASES = Path(__file__).parents[3] / "benchmarks" / "data" / "model_aliases.toml"

# Parameter counts that the Hugging Face hub shows for the safetensors files. Stored twice there,
# and counted once here: the tied matrices of Qwen3-0.6B and 1.7B (their cards say 0.6B and 1.7B).
# DeepSeek-V3: 671B of its card, without the 14B of multi-token prediction. Llama 4: their cards'
# 109B and 400B, without the vision tower of 0.9B. Qwen3.5-9B: its name, without the tower. GPT-3:
# Brown et al. 2020. GPT-177B, 583M, 16B: Megatron-LM's names. Hybrid-2B: its name, and both ends.
COUNTS = {
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


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_published(name: str) -> None:
    assert shape(name).parameters() == pytest.approx(COUNTS[name], rel=0.01)


def test_every_shape_is_compared_with_a_published_count() -> None:
    assert {shape(name) for name in COUNTS} == set(known_models().values())


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


@pytest.mark.parametrize("family", SMALL)
def test_a_configuration_gives_the_parameters_of_its_model(family: str, tmp_path: Path) -> None:
    config, model = made(family, SMALL[family])
    config.save_pretrained(tmp_path)
    counted = read_config(tmp_path / "config.json").parameters()
    assert counted == sum(p.numel() for p in model.parameters())


def test_every_family_is_compared_with_its_model() -> None:
    # A mixture of DeepSeek-V3's form, which transformers has no model of its own for.
    assert set(SMALL) == set(FAMILIES) - {"kimi_k2"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_gives_the_known_shape(name: str, tmp_path: Path) -> None:
    family, fields = PUBLISHED[name]
    AutoConfig.for_model(family, **fields).save_pretrained(tmp_path)
    assert read_config(tmp_path / "config.json") == known_models()[name]


def test_layers_without_a_list_of_kinds_have_those_of_their_family(tmp_path: Path) -> None:
    """Files written before transformers 5 do not list them."""
    listed = {"gemma2", "gemma3_text", "gpt_oss", "qwen2", "llama4_text", "qwen3_next"}
    for family in sorted(listed | {"qwen3_5_text"}):
        config = AutoConfig.for_model(family, **SMALL[family]).to_dict()
        assert config["layer_types"]
        shape = shape_of_config(config)
        assert shape_of_config(config | {"layer_types": None}) == shape, family


def test_an_older_file_of_a_model_with_a_tower_is_flat() -> None:
    config = AutoConfig.for_model("qwen2_5_vl", **SMALL["qwen2_5_vl"]).to_dict()
    flat = config["text_config"] | config | {"text_config": None}
    assert shape_of_config(flat) == shape_of_config(config)


def test_a_window_caps_what_a_sequence_keeps() -> None:
    windowed, plain = shape("mistralai/Mistral-7B-v0.1"), shape("mistralai/Mistral-7B-v0.3")
    assert windowed.cached(1000) == plain.cached(1000) == 32 * 2 * 8 * 128 * 1000
    assert windowed.cached(9000) == plain.cached(4096)
    half = shape("openai/gpt-oss-20b")
    assert half.cached(1000) == 12 * 2 * 8 * 64 * (1000 + 128)
    many = np.asarray([100.0, 1000.0])
    assert half.cached(many).tolist() == [half.cached(100.0), half.cached(1000.0)]


def test_a_hybrid_keeps_a_state_beside_the_cache_of_its_attention_layers() -> None:
    nano = shape("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    state = 23 * (64 * 64 * 128 + 3 * (4096 + 2 * 8 * 128))
    assert nano.cached(1000) == 6 * 2 * 2 * 128 * 1000 + state


def test_the_widest_feed_forward_part_is_the_visited_one() -> None:
    assert shape("Qwen/Qwen3-8B").visited_width == 12288
    assert shape("Qwen/Qwen3-30B-A3B").visited_width == 8 * 768
    assert shape("deepseek-ai/DeepSeek-V3").visited_width == 18432
    assert shape("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16").visited_width == 6 * 1856 + 3712
