"""Operations against those that torch counts in models on the meta device.

FlopCounterMode counts attention as a full square, windows and causality left out: so does the
formula that it is compared with; what the causal one leaves out is asserted on its own.
"""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from rlinf_graph.compiler.cost.configs import shape_of_config
from rlinf_graph.compiler.cost.flops import Adapter, training_flops
from rlinf_graph.compiler.cost.lookup import known_models
from rlinf_graph.compiler.cost.shapes import ModelShape
from tests.compiler.cost.configs import PUBLISHED, SMALL, TINY, TOWER, counted, made, sizes

TOKENS = 256
ONE_KEY = ("llama", sizes(32, 4096, 32, 1, 11008, 32000))
CASES = {
    **{f"small {name}": (name, SMALL[name]) for name in SMALL if name != "qwen2_5_vl"},
    "small, one key head": ("llama", TINY | {"num_key_value_heads": 1}),
    **PUBLISHED,
    "7B, one key head": ONE_KEY,
}
# Llama 4 multiplies with every expert in transformers. Linear attention is emulated there by
# element-wise loops and convolutions that are counted as dense products.
UNLIKE = ("small llama4_text", "small qwen3_next", "small qwen3_5_text", "small nemotron_h")


@cache
def case(name: str) -> tuple[ModelShape, int, int]:
    """The shape, and counted operations of a forward pass and of both passes."""
    config, model = made(*CASES[name])
    shape = shape_of_config(config.to_dict())
    assert shape.parameters() == sum(p.numel() for p in model.parameters())
    return shape, *counted(model, TOKENS)


def square(shape: ModelShape, tokens: int) -> float:
    """Operations of attention over the whole square in every layer."""
    widths = shape.query_width + shape.value_width
    return 2.0 * shape.attention_layers * widths * tokens**2


def whole(shape: ModelShape, tokens: int) -> float:
    """A forward pass with the whole square of attention."""
    causal = shape.causal_flops(tokens, tokens**2)
    return shape.forward_flops(tokens, tokens**2, tokens, "lm") - causal + square(shape, tokens)


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNLIKE])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    shape, forward, both = case(name)
    assert whole(shape, TOKENS) == pytest.approx(forward, rel=0.01)
    rest = square(shape, TOKENS) - shape.causal_flops(TOKENS, TOKENS**2)
    trained = training_flops(shape, TOKENS, TOKENS**2, TOKENS)
    assert trained + 3 * rest == pytest.approx(both, rel=0.01)


def test_a_hybrid_of_real_size_agrees_where_emulation_weighs_little() -> None:
    fields = sizes(32, 4096, 16, 4, 12288, 248320) | {"head_dim": 256}
    config, model = made("qwen3_5_text", fields)
    shape = shape_of_config(config.to_dict())
    assert shape == known_models()["Qwen/Qwen3.5-9B"]
    forward, _both = counted(model.requires_grad_(False), TOKENS)
    assert whole(shape, TOKENS) == pytest.approx(forward, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_attention_is_half_a_square_and_a_band_within_windows(name: str) -> None:
    shape, tokens = known_models()[name], 4096
    half, window = tokens * (tokens + 1) / 2, min(shape.window, tokens)
    band = sum(min(place, window) for place in range(1, tokens + 1))
    pairs = (shape.attention_layers - shape.windowed) * half + shape.windowed * band
    widths = 2.0 * (shape.query_width + shape.value_width)
    assert shape.causal_flops(tokens, tokens**2) == pytest.approx(widths * pairs, rel=0.01)
    each = sum(shape.attention_flops(float(place)) for place in range(1, tokens + 1))
    assert each == pytest.approx(widths * pairs, rel=1e-9)


def test_attention_weighs_what_the_context_makes_it() -> None:
    shape = known_models()["Qwen/Qwen2.5-0.5B"]
    assert shape.causal_flops(2048, 2048**2) / shape.forward_flops(2048, 2048**2, 1, "lm") > 0.1


@pytest.mark.parametrize(
    ("vision", "side"),
    [
        (TOWER | {"in_channels": 3}, 32),
        ({"hidden_size": 1280, "out_hidden_size": 3584}, 32),  # Qwen2.5-VL-7B
    ],
)
def test_a_vision_tower_costs_what_torch_counts(vision: dict, side: int) -> None:
    fields = sizes(28, vision["out_hidden_size"], 4, 4, 96, 100)
    config = AutoConfig.for_model("qwen2_5_vl", text_config=fields, vision_config=vision)
    tower = shape_of_config(config.to_dict()).towers[0]
    patches = side**2
    assert tower.patches == patches
    config.vision_config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = Qwen2_5_VisionTransformerPretrainedModel(config.vision_config)
        pixels = torch.zeros(patches, tower.patch)
        places = torch.zeros(patches, 2, dtype=torch.int64)
    grid = torch.tensor([[1, side, side]])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels, grid_thw=grid, position_ids=places)
    assert tower.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert tower.parameters == sum(p.numel() for p in model.parameters())


class Adapted(torch.nn.Module):
    """A frozen product with an adapter beside it."""

    def __init__(self, base: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize(
    ("family", "fields", "names"),
    [
        ("llama", TINY | {"num_hidden_layers": 16}, ("q", "v")),
        (*PUBLISHED["Qwen/Qwen3-8B"], ("q", "k", "v", "o", "gate", "up", "down")),
    ],
)
def test_adapters_make_gradients_of_their_own_weights_only(
    family: str, fields: dict, names: tuple[str, ...]
) -> None:
    config, model = made(family, fields)
    shape, adapter = shape_of_config(config.to_dict()), Adapter(16, names)
    model.requires_grad_(False)
    with torch.device("meta"):
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if name.removesuffix("_proj") in names and isinstance(child, torch.nn.Linear):
                    setattr(module, name, Adapted(child, adapter.rank))
    _forward, both = counted(model, TOKENS)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter.parameters(shape) == trained
    rest = square(shape, TOKENS) - shape.causal_flops(TOKENS, TOKENS**2)
    estimate = training_flops(shape, TOKENS, TOKENS**2, TOKENS, adapter=adapter)
    assert estimate + 3 * rest == pytest.approx(both, rel=0.01)


def test_adapters_of_latent_attention_are_those_of_its_products() -> None:
    shape = known_models()["deepseek-ai/DeepSeek-V3"]
    every = Adapter(1, ("q", "k", "o")).parameters(shape)
    pairs = [(7168, 1536), (1536, 128 * 192), (7168, 576), (512, 128 * 256), (128 * 128, 7168)]
    assert every == 61 * sum(a + b for a, b in pairs)


def test_frozen_towers_run_forward_only() -> None:
    shape = known_models()["Qwen/Qwen2.5-VL-7B-Instruct"]
    text = training_flops(shape, 100, 100**2, 100)
    tower = shape.towers[0].flops
    assert training_flops(shape, 100, 100**2, 100, images=2) - text == pytest.approx(2 * tower)
    seen = training_flops(shape, 100, 100**2, 100, images=2, towers_trained=True)
    assert seen - text == pytest.approx(6 * tower)


def test_a_decode_step_is_a_forward_pass_of_one_token() -> None:
    shape, context = known_models()["Qwen/Qwen3-8B"], 1000
    cached = shape.attention_flops(context)
    assert shape.step_flops(context) == shape.forward_flops(1, 0, 1, "lm") + cached
