"""Small networks: made, saved, loaded, and refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.distributions import Categorical

from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.engines.torch.network import Network
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Space
from rlinf_graph.nodes.engine import Key, Sampling, TrainBatch
from rlinf_graph.nodes.loss import PPOLoss, ValueLoss
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW
from tests.engines.torch.small import (
    ARRAY,
    BOTH,
    VECTOR,
    drawn,
    livelier,
    network,
    observed,
    policy_of,
    transitions,
)


def test_new_weights_are_orthogonal_with_the_gains_of_stable_baselines() -> None:
    weights = network(path="mlp:32x16", action=ARRAY).weights()
    assert [tuple(w.shape) for w in weights.values()] == [
        (2,), (32, 3), (32,), (16, 32), (16,), (2, 16), (2,)
    ]  # fmt: skip
    for layer, gain in ((0, math.sqrt(2)), (1, math.sqrt(2)), (2, 0.01)):
        weight = weights[f"layers.{layer}.weight"]
        small = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
        expected = gain**2 * torch.eye(len(small), dtype=torch.float64)
        torch.testing.assert_close(small, expected, rtol=0, atol=1e-5)
        assert not weights[f"layers.{layer}.bias"].any()
    assert not weights["log_std"].any()
    last = network("value", path="mlp:32x16").weights()["layers.2.weight"]
    assert float(last.norm()) == pytest.approx(1, abs=1e-5)


@BOTH
def test_new_weights_depend_on_seed_and_name_only(action: Space) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = network(action=action).weights()
    assert torch.equal(torch.random.get_rng_state(), before)
    single = network(action=action, dtype="float32").weights()
    assert all(torch.equal(single[n].double(), w) for n, w in first.items())
    assert all(torch.equal(network(action=action).weights()[n], w) for n, w in first.items())
    for other in (network(action=action, seed=1), network(action=action, name="other")):
        assert not torch.isclose(other.weights()["layers.0.weight"], first["layers.0.weight"]).any()


@pytest.mark.parametrize(
    ("path", "hidden"), [("mlp:", ()), ("mlp:5", (5,)), ("mlp:5x6x7", (5, 6, 7))]
)
def test_paths_name_hidden_layers(path: str, hidden: tuple[int, ...]) -> None:
    engine = network(path=path)
    assert cast("Network", engine.model).sizes.layers == (3, *hidden, 4)
    assert engine.act(observed(drawn(2, 3)), Key(0, "act", 0), 0, greedy=False).values.shape == (2,)


def test_numbers_are_spread_and_bytes_scaled() -> None:
    numbers = network(observation=Space(choices=5, dtype="int64"))
    first = numbers.weights()
    seen = torch.tensor([3, 0])
    with torch.no_grad():
        expected = policy_of(numbers, torch.eye(5, dtype=torch.float64)[seen])
        torch.testing.assert_close(
            torch.log_softmax(numbers.model(seen), -1), cast("Categorical", expected).logits
        )
    assert first["layers.0.weight"].shape == (16, 5)
    pictures = network(observation=Space((2, 2, 3), dtype="uint8"))
    bytes_ = torch.randint(256, (4, 2, 2, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = policy_of(pictures, bytes_.double().flatten(1) / 255)
        torch.testing.assert_close(
            torch.log_softmax(pictures.model(bytes_), -1), cast("Categorical", expected).logits
        )


@BOTH
@pytest.mark.parametrize("head", ["action", "value"])
def test_a_saved_network_is_loaded_again(action: Space, head: str, tmp_path: Path) -> None:
    engine = livelier(network(head, action=action))
    engine.save(tmp_path / "to")
    config = json.loads((tmp_path / "to" / "config.json").read_text())
    assert config["model_type"] == "mlp"
    path = str(tmp_path / "to")
    for sees, does in ((VECTOR, action), (None, None)):
        again = network(head, path=path, weights="pretrained", observation=sees, action=does)
        assert all(torch.equal(again.weights()[n], w) for n, w in engine.weights().items())
    new = network(head, path=path, weights="random", action=action)
    first = network(head, action=action).weights()["layers.0.weight"]
    assert torch.equal(new.weights()["layers.0.weight"], first)


def test_training_goes_on_from_its_state() -> None:
    engine = network(trainable=True)
    batch = TrainBatch(transitions([4, 8]), advantages=drawn(12, seed=7))

    def go(engine: TorchEngine) -> None:
        weight = engine.accumulate([batch], PPOLoss(), Metrics())
        engine.optimizer_step(AdamW(lr=0.01), weight, Metrics())

    go(engine)
    other = network(trainable=True, seed=1)
    other.load_state(engine.state())
    go(engine)
    go(other)
    assert all(torch.equal(other.weights()[n], w) for n, w in engine.weights().items())
    before = engine.act(observed(drawn(4, 3)), Key(0, "act", 0), 0, greedy=False).logprobs
    go(engine)
    after = engine.act(observed(drawn(4, 3)), Key(0, "act", 0), 0, greedy=False).logprobs
    assert not torch.isclose(before, after).any()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(CompileError) as caught:
        call()
    (found,) = caught.value.diagnostics
    assert found.code == "RG0503"
    assert found.help
    return found.render()


def test_what_a_network_cannot_do_is_refused(tmp_path: Path) -> None:
    policy, critic = network(trainable=True), network("value", name="critic", trainable=True)
    samples = TrainBatch(transitions([2]), advantages=torch.zeros(2), returns=torch.zeros(2))
    nothing: Any = None
    for call in (
        lambda: policy.generate(nothing, Sampling(), Key(0, "r", 0), 0),
        lambda: policy.logprobs(nothing),
        lambda: critic.values(nothing),
        lambda: policy.scores([]),
    ):
        assert "is a small network with head" in refused(call)
    with pytest.raises(CompileError, match=r"RG0503.*has no tokenizer"):
        policy.tokenize("1")
    assert "has head `action`; this needs `value`" in refused(lambda: policy.step_values(nothing))
    assert "has head `value`; this needs `action`" in refused(
        lambda: critic.act(nothing, Key(0, "a", 0), 0, greedy=True)
    )
    assert "needs `value`" in refused(lambda: policy.accumulate([samples], ValueLoss(), Metrics()))
    assert "needs `action`" in refused(lambda: critic.accumulate([samples], PPOLoss(), Metrics()))


def test_a_model_of_transformers_does_not_act(make: Callable[..., TorchEngine]) -> None:
    engine = make(trainable=True)
    seen = observed(drawn(2, 3))
    said = refused(lambda: engine.act(seen, Key(0, "a", 0), 0, greedy=True))
    assert "is a model of transformers with head `lm`; this needs a small network" in said
    batch = TrainBatch(transitions([2]), advantages=torch.zeros(2))
    assert "needs a small network" in refused(
        lambda: engine.accumulate([batch], PPOLoss(), Metrics())
    )


def test_networks_that_cannot_be_made_are_explained(tmp_path: Path) -> None:
    for path in ("mlp:64x", "mlp:0", "mlp:a", "mlp:-3"):
        assert "names no network" in refused(lambda path=path: network(path=path))
    assert "none is known" in refused(lambda: network(observation=None))
    assert "none is known" in refused(lambda: network(action=None))
    assert "has no head `lm`" in refused(lambda: network("lm"))
    network().save(tmp_path / "to")
    path = str(tmp_path / "to")
    other = refused(lambda: network(path=path, observation=Space((5,)), weights="pretrained"))
    assert "observations of shape (3,), actions of 4 choices" in other
    assert "is made for something else" in refused(
        lambda: network("value", path=path, weights="pretrained")
    )
    (tmp_path / "to" / "model.safetensors").write_bytes(b"12345678")
    assert "cannot be read" in refused(lambda: network(path=path, weights="pretrained"))
    (tmp_path / "to" / "config.json").write_text('{"model_type": "mlp"}')
    assert "cannot be read" in refused(lambda: network(path=path, weights="pretrained"))


def test_a_small_network_is_no_coarser_than_float32() -> None:
    engine = network(dtype="auto")
    assert engine.dtype == torch.float32
    coarse = network(dtype="bfloat16", trainable=True)
    made = coarse.act(observed(drawn(2, 3).float()), Key(0, "act", 0), 0, greedy=False)
    assert made.logprobs.dtype == torch.float32
