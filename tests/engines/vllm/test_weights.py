from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.engine import Sampling
from tests.engines.vllm.conftest import (
    KEY,
    TEXTS,
    Ask,
    Make,
    difference,
    read_model,
    said,
    save_random,
    scored,
    write_weights,
)

if TYPE_CHECKING:
    from rlinf_graph.engines.vllm.engine import VllmEngine

CLOSE = 1e-4
SAMPLING = Sampling(samples=2, max_tokens=16)
LONG = "1+2-3+4-5+6-" * 6  # more than a block of the cache


def bucket(model: Any) -> Any:
    """The weights of a model one by one, in memory that is used again for the next."""
    space = torch.empty(max(weight.numel() for weight in model.parameters()))
    for name, weight in model.named_parameters():
        view = space[: weight.numel()].view_as(weight)
        view.copy_(weight.detach())
        yield name, view


def test_twenty_updates_are_what_a_fresh_forward_of_the_saved_weights_says(
    engine: VllmEngine, ask: Ask, path: Path
) -> None:
    asked = ask(*TEXTS, LONG)
    for version in range(1, 21):
        engine.update_weights(bucket(write_weights(path, seed=version)), version)
        assert engine.version == version
        saved = read_model(path)
        made = engine.generate(asked, SAMPLING, KEY, version)
        assert difference(saved, made) < CLOSE
        greedy = engine.generate(asked, Sampling(max_tokens=16, temperature=0), KEY, version)
        for logits, tokens in zip(scored(saved, greedy), said(greedy), strict=True):
            behind = logits.max(dim=1).values - logits.gather(1, tokens[:, None])[:, 0]
            assert float(behind.max()) < CLOSE


def test_an_update_without_emptying_the_cache_would_read_old_keys(
    engine: VllmEngine, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.generate(ask(LONG), SAMPLING, KEY, 0)
    with monkeypatch.context() as patch:
        patch.setattr(engine._engine, "reset_prefix_cache", lambda **_: True)
        engine.update_weights(write_weights(path, seed=1).named_parameters(), 1)
    stale = engine.generate(ask(LONG), SAMPLING, KEY, 1)
    engine.update_weights(read_model(path).named_parameters(), 1)
    fresh = engine.generate(ask(LONG), SAMPLING, KEY, 1)
    assert difference(read_model(path), stale) > 0.01
    assert difference(read_model(path), fresh) < CLOSE


def test_what_vllm_forgets_on_a_cpu_is_still_forgotten(
    engine: VllmEngine, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlinf_graph.engines.vllm import weights

    new = write_weights(path, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "_pack_again", lambda *_: None)
        engine.update_weights(new.named_parameters(), 1)
    assert difference(new, engine.generate(ask(*TEXTS), SAMPLING, KEY, 1)) > 0.01
    engine.update_weights(new.named_parameters(), 2)
    assert difference(new, engine.generate(ask(*TEXTS), SAMPLING, KEY, 2)) < CLOSE


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
        ("qwen3_moe", {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2,
                       "moe_intermediate_size": 64}),
    ],
)  # fmt: skip
def test_families(
    make: Make, ask: Ask, tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    path = save_random(tmp_path / model_type, model_type, **settings)
    engine = make(path)
    assert difference(read_model(path), engine.generate(ask(*TEXTS), SAMPLING, KEY, 0)) < CLOSE
    write_weights(path, seed=1)
    engine.update_weights(checkpoint(path), 1)
    assert difference(read_model(path), engine.generate(ask(*TEXTS), SAMPLING, KEY, 1)) < CLOSE


def checkpoint(path: Path) -> Any:
    """The weights in a folder, by their names there."""
    from safetensors.torch import load_file

    for file in sorted(path.glob("*.safetensors")):
        yield from load_file(file).items()


def test_layers_that_do_not_come_stay(engine: VllmEngine, ask: Ask, path: Path) -> None:
    old = read_model(path)
    new = write_weights(path, seed=1)
    part = {
        n: w for n, w in new.named_parameters() if n.startswith(("model.layers.1.", "model.norm"))
    }
    engine.update_weights(part.items(), 1)
    old.load_state_dict(part, strict=False)
    assert difference(old, engine.generate(ask(*TEXTS), SAMPLING, KEY, 1)) < CLOSE


def test_refused_updates(engine: VllmEngine, ask: Ask, path: Path) -> None:
    weights = dict(read_model(path).named_parameters())
    other = {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 4)}
    with pytest.raises(
        CompileError, match=r"up_proj\.weight` of `policy` has shape 64×128, not 3×4"
    ):
        engine.update_weights({**weights, **other}.items())
    with pytest.raises(RuntimeError, match="broke off: give all of them"):
        engine.generate(ask("1"), SAMPLING, KEY, 0)
    with pytest.raises(CompileError, match=r"no weight `model\.layers\.0\.mlp\.gate\.weight`"):
        engine.update_weights([("model.layers.0.mlp.gate.weight", torch.zeros(1))])
    layer = {n: w for n, w in weights.items() if "layers.0.self_attn" in n}
    with pytest.raises(CompileError, match=r"lacks .* weights of layers"):
        engine.update_weights(layer.items())
    engine.update_weights(weights.items(), 3)
    assert engine.version == 3
    assert difference(read_model(path), engine.generate(ask(*TEXTS), SAMPLING, KEY, 3)) < CLOSE


def test_part_of_a_layer_is_refused(engine: VllmEngine, ask: Ask, path: Path) -> None:
    query = {
        n: w
        for n, w in read_model(path).named_parameters()
        if n.endswith("0.self_attn.q_proj.weight")
    }
    with pytest.raises(CompileError, match="lacks 11 weights of layers that it has others of"):
        engine.update_weights(query.items())
