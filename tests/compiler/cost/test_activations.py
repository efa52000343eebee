"""What a layer keeps, against what torch saves for the backward pass of transformers' layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.compiler.cost.activations import LayerMemory, layer_memory
from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.keeps import KEEPS
from rlinf_graph.compiler.cost.layout import Layout, hardware_of
from rlinf_graph.compiler.cost.lookup import read_config
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.plan import NodePlan, Parallel

TOKENS = 256
SIZES = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 704,
    "vocab_size": 64,
    "max_position_embeddings": 512,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 192}
FAMILIES: dict[str, tuple[str, dict[str, int]]] = {
    "qwen2": ("Qwen2", {}),
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 32} | EXPERTS),
}


def saved_bytes(model: Any) -> float:
    """Bytes of all storages that the forward pass saves for a token, weights aside."""
    import torch

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (at := tensor.untyped_storage().data_ptr()) not in weights:
            held[at] = tensor
        return tensor

    tokens = torch.randint(0, SIZES["vocab_size"], (1, TOKENS))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(input_ids=tokens, use_cache=False)
    assert out.last_hidden_state.shape == (1, TOKENS, SIZES["hidden_size"])
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values()) / TOKENS


def layer(shape: ModelShape, engine: str, dtype: str = "bfloat16", **axes: Any) -> LayerMemory:
    """Of a layer on GPUs, with settings of a plan."""
    others = {"recompute": axes.pop("recompute", False)}
    settings = NodePlan(parallel=Parallel(**axes), engine=engine, **others)
    devices = settings.parallel.devices
    hardware = hardware_of(load_cluster(f"{devices}xH100"), range(devices), settings.parallel)
    layout = Layout(shape, "lm", dtype, hardware, settings, CONSTANTS["gpu"])
    return layer_memory(layout, KEEPS[engine])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_keeps_what_torch_saves(family: str, dtype: str, tmp_path: Path) -> None:
    """The difference between three layers and one, each of random weights, to 1 %."""
    import torch
    import transformers

    name, more = FAMILIES[family]
    torch.manual_seed(0)
    measured: list[float] = []
    for layers in (1, 3):
        config = getattr(transformers, f"{name}Config")(
            num_hidden_layers=layers, attn_implementation="sdpa", **SIZES, **more
        )
        model = getattr(transformers, f"{name}Model")(config).to(getattr(torch, dtype)).train()
        measured.append(saved_bytes(model))
    config.save_pretrained(tmp_path)
    shape = read_config(tmp_path / "config.json")
    said = layer(shape, "torch", dtype).whole
    assert said == pytest.approx((measured[1] - measured[0]) / 2, rel=0.01)


@pytest.fixture
def shape() -> ModelShape:
    """A dense layer as wide as Llama-3.1-8B's."""
    return ModelShape(32, 4096, 32, 8, 128, 14336, 128256)


def test_selective_recomputation_keeps_every_second_product(shape: ModelShape) -> None:
    """Input, queries, values, attention's output and its sums, gate, and the last product."""
    made = layer(shape, "torch").selective
    assert made == 2 * (4096 + 4096 + 1024 + 4096 + 14336 + 4096) + 4 * 32


def test_full_recomputation_keeps_the_input(shape: ModelShape) -> None:
    assert layer(shape, "torch").full == 2 * 4096
    assert layer(shape, "torch", recompute=True).kept == 2 * 4096


def test_ranks_that_cut_by_sequence_share_what_stands_between_products(shape: ModelShape) -> None:
    """Korthikanti et al. 2022: without, the norms of every rank stay whole."""
    alone, spread = (layer(shape, "megatron", tp=tp) for tp in (1, 8))
    assert spread.full == alone.full / 8
    whole = layer(shape, "torch", tp=8).whole
    assert spread.whole < alone.whole / 4
    assert whole > 16 * 4096


def test_expert_ranks_exchange_two_copies_of_a_token_for_each_expert(shape: ModelShape) -> None:
    mixture = replace(shape, experts=8, experts_per_token=2, expert_intermediate=1024)
    assert layer(mixture, "megatron", dp=8, ep=8).exchanged == 2 * 2 * 4096 * 2
    assert layer(mixture, "megatron", dp=8).exchanged == 0
