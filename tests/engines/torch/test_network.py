"""Small networks: what they say against torch's distributions and Stable-Baselines3."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from rlinf_graph.engines.torch import acting
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.engines.torch.network import Network
from rlinf_graph.engines.torch.noise import gumbel, uniform, uniform_to_gumbel
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Observations, Transitions
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import ModelDef, Space
from rlinf_graph.nodes.engine import Key, Sampling, TrainBatch
from rlinf_graph.nodes.loss import PPOLoss, ValueLoss
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW
from tests.engines.torch.test_forward import Seen

VECTOR = Space((3,))
CHOICES, ARRAY = Space(choices=4, dtype="int64"), Space((2,))
BOTH = pytest.mark.parametrize("action", [CHOICES, ARRAY], ids=["choices", "array"])


def network(
    head: str = "action",
    *,
    path: str = "mlp:16x8",
    name: str = "policy",
    observation: Space | None = VECTOR,
    action: Space | None = CHOICES,
    weights: str = "random",
    dtype: str = "float64",
    seed: int = 0,
    trainable: bool = False,
) -> TorchEngine:
    made = ModelDef(
        name, path, head, dtype, weights, env="sim", observation=observation, action=action
    )
    return TorchEngine(made, seed=seed, device="cpu", dtype=dtype, trainable=trainable)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def livelier(engine: TorchEngine) -> TorchEngine:
    """Another policy than a new one, which is close to uniform."""
    given = {n: drawn(*w.shape, seed=i) for i, (n, w) in enumerate(engine.weights().items())}
    engine.load_weights((n, w / 2) for n, w in given.items())
    return engine


def observed(values: Tensor, first: int = 0) -> Observations:
    index = torch.arange(first, first + len(values))
    return Observations(index=index, group=index, values=values)


def transitions(lengths: list[int], action: Space = CHOICES, *, cut: int = 3) -> Transitions:
    """Random steps; every `cut` steps a time limit ends an episode."""
    steps, count = sum(lengths), len(lengths)
    truncated = torch.arange(steps) % cut == cut - 1
    owner = torch.arange(count).repeat_interleave(torch.tensor(lengths))
    finals = drawn(steps, 3, seed=9)
    choice = torch.randint(4, (steps,), generator=torch.Generator().manual_seed(2))
    return Transitions(
        index=torch.arange(count),
        group=torch.arange(count),
        lengths=torch.tensor(lengths),
        observations=drawn(steps + count, 3),
        actions=choice if action.choices else drawn(steps, 2, seed=2),
        logprobs=-drawn(steps, seed=3).abs(),
        versions=torch.zeros(steps, dtype=torch.int64),
        reward_values=drawn(steps, seed=4),
        terminated=torch.zeros(steps, dtype=torch.bool),
        truncated=truncated,
        finals=[[finals[t] for t in range(steps) if truncated[t] and owner[t] == row]
                for row in range(count)],
    )  # fmt: skip


def policy_of(engine: TorchEngine, observations: Tensor) -> Distribution:
    """What torch makes of the same weights, layer by layer."""
    weights = engine.weights()
    seen = observations
    for layer in range(3):
        seen = seen @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
        seen = torch.tanh(seen) if layer < 2 else seen
    if "log_std" not in weights:
        return Categorical(logits=seen)
    return Independent(Normal(seen, weights["log_std"].exp()), 1)


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
def test_logprobs_and_entropies_are_those_of_torch(action: Space) -> None:
    engine = livelier(network(action=action, trainable=True))
    samples, loss = transitions([4, 1, 6], action), Seen(entropy=True)
    engine.accumulate(TrainBatch(samples), loss, Metrics())
    seen = samples.observations[[0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12]]
    expected = policy_of(engine, seen)
    assert loss.outputs.logprobs is not None
    assert loss.outputs.entropy is not None
    torch.testing.assert_close(loss.outputs.logprobs.detach(), expected.log_prob(samples.actions))
    torch.testing.assert_close(loss.outputs.entropy.detach(), expected.entropy())
    assert loss.outputs.values is None


@BOTH
def test_logprobs_of_actions_are_those_of_training(action: Space) -> None:
    engine = livelier(network(action=action))
    seen = drawn(50, 3)
    made = engine.act(observed(seen), Key(0, "act", 2, (7,)), 5, greedy=False)
    expected = policy_of(engine, seen).log_prob(made.values)
    torch.testing.assert_close(made.logprobs, expected)
    assert made.versions.tolist() == [5] * 50
    assert made.values.dtype == (torch.int64 if action.choices else torch.float64)
    greedy = engine.act(observed(seen), Key(0, "act", 2, (7,)), 5, greedy=True)
    torch.testing.assert_close(greedy.values, policy_of(engine, seen).mode)
    assert not greedy.logprobs.any()


@BOTH
def test_a_draw_does_not_depend_on_the_others(action: Space) -> None:
    engine = livelier(network(action=action))
    seen, key = observed(drawn(16, 3)), Key(3, "act", 1, (2, 70))
    whole = engine.act(seen, key, 0, greedy=False)
    for rows in ([3], [9, 2, 5], list(range(15, -1, -1)), list(range(8, 16))):
        made = engine.act(packed.select(seen, rows), key, 0, greedy=False)
        torch.testing.assert_close(made.values, whole.values[rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(made.logprobs, whole.logprobs[rows], rtol=0, atol=1e-12)


@BOTH
def test_a_draw_does_not_depend_on_how_many_are_made_at_once(
    action: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, seen = livelier(network(action=action)), observed(drawn(8, 3))
    keys = [Key(3, "act", 1, (step,)) for step in (0, 1, 63, 64, 65, 200, 2)]
    before = [engine.act(seen, key, 0, greedy=False).values for key in keys]
    again = [engine.act(seen, key, 0, greedy=False).values for key in keys]
    monkeypatch.setattr(acting, "BLOCK_NUMBERS", 7 * 8 * (4 if action.choices else 2))
    monkeypatch.setattr(acting, "MOST_BLOCKS", 2)
    engine._noise = acting.Noise()
    after = [engine.act(seen, key, 0, greedy=False).values for key in keys]
    assert all(torch.equal(a, b) and torch.equal(a, c)
               for a, b, c in zip(before, again, after, strict=True))  # fmt: skip


def test_every_part_of_the_key_matters() -> None:
    engine, seen = network(action=ARRAY), observed(torch.zeros(4, 3))
    first = engine.act(seen, Key(0, "act", 1, (2, 3)), 0, greedy=False).values
    others = [Key(1, "act", 1, (2, 3)), Key(0, "other", 1, (2, 3)), Key(0, "act", 2, (2, 3))]
    others += [Key(0, "act", 1, steps) for steps in ((3, 3), (2, 4), (3,))]
    for key in others:
        assert not torch.isclose(engine.act(seen, key, 0, greedy=False).values, first).any()
    later = observed(torch.zeros(4, 3), first=4)
    moved = engine.act(later, Key(0, "act", 1, (2, 3)), 0, greedy=False).values
    assert not torch.isclose(moved, first).any()


def test_noise_of_steps_is_that_of_positions() -> None:
    index = torch.tensor([5, 0, 2**40])
    several = uniform_to_gumbel(uniform(-77, index, torch.arange(3, 6), 11))
    assert all(torch.equal(several[i], gumbel(-77, index, 3 + i, 11)) for i in range(3))


def test_choices_are_as_frequent_as_they_are_probable() -> None:
    engine, row = livelier(network()), drawn(1, 3, seed=5)
    seen = observed(row.expand(500, 3))
    made = [engine.act(seen, Key(0, "act", 0, (s,)), 0, greedy=False).values for s in range(40)]
    counts = torch.cat(made).bincount(minlength=4).double()
    expected = cast("Categorical", policy_of(engine, row)).probs[0] * 20_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 20  # 3 degrees of freedom


def test_arrays_are_normal() -> None:
    engine, row = livelier(network(action=ARRAY)), drawn(1, 3, seed=5)
    seen = observed(row.expand(500, 3))
    made = [engine.act(seen, Key(0, "act", 0, (s,)), 0, greedy=False).values for s in range(40)]
    normal = cast("Independent", policy_of(engine, row)).base_dist
    shares = cast("Normal", normal).cdf(torch.cat(made))
    for column in shares.T:
        counts = torch.histc(column, bins=50, min=0, max=1)
        assert float(((counts - 400) ** 2 / 400).sum()) < 49 + 5 * math.sqrt(98)
    assert abs(float(torch.corrcoef(shares.T)[0, 1])) < 0.03


def test_values_along_steps() -> None:
    engine, episode = livelier(network("value", name="critic")), transitions([4, 1, 6], cut=4)
    values, finals = engine.step_values(episode)
    with torch.no_grad():
        torch.testing.assert_close(values, engine.model(episode.observations)[:, 0])
        last = torch.stack([final for row in episode.finals for final in row])
        torch.testing.assert_close(finals[episode.truncated], engine.model(last)[:, 0])
    assert [len(row) for row in episode.finals] == [1, 0, 1]
    assert finals.shape == (11,)
    assert not finals[~episode.truncated].any()
    with pytest.raises(ValueError, match="1 last observations of 2 truncated episodes"):
        engine.step_values(episode.replace(finals=[episode.finals[0], [], []]))


def test_values_in_training_are_those_of_states_in_which_was_acted() -> None:
    engine = livelier(network("value", name="critic", trainable=True))
    samples, loss = transitions([4, 1, 6]), Seen("values")
    engine.accumulate(TrainBatch(samples), loss, Metrics())
    values, _ = engine.step_values(samples)
    assert loss.outputs.values is not None
    kept = [0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12]
    torch.testing.assert_close(loss.outputs.values.detach(), values[kept])


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        return True


def collected(env: str, **options: Any) -> PPO:
    """Stable-Baselines3's PPO with a rollout, and another policy than the one that made it."""
    theirs = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu",
                 normalize_advantage=False, max_grad_norm=1e9, **options)  # fmt: skip
    _, callback = theirs._setup_learn(64, Stop())
    theirs.collect_rollouts(theirs.env, callback, theirs.rollout_buffer, 64)  # pyright: ignore[reportArgumentType]  set by PPO
    draws = torch.Generator().manual_seed(0)
    for parameter in theirs.policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
    return theirs


def trained_on(theirs: BaseAlgorithm, head: str) -> tuple[TorchEngine, dict[str, Tensor]]:
    """Our engine with their weights; and their gradients, under our names."""
    does, policy = theirs.action_space, cast("Any", theirs.policy)
    discrete = isinstance(does, gym.spaces.Discrete)
    action = Space(choices=int(does.n)) if discrete else Space(cast("Any", does.shape))
    observation = Space(cast("Any", theirs.observation_space.shape))
    engine = network(head, path="mlp:64x64", observation=observation, action=action,
                     dtype="float32", trainable=True)  # fmt: skip
    mlp, last = policy.mlp_extractor, policy.action_net if head == "action" else policy.value_net
    layers = mlp.policy_net if head == "action" else mlp.value_net
    named = {f"layers.{i}.{kind}": getattr(layer, kind)
             for i, layer in enumerate((layers[0], layers[2], last))
             for kind in ("weight", "bias")}  # fmt: skip
    if "log_std" in engine.weights():
        named["log_std"] = policy.log_std
    engine.load_weights((n, p.detach()) for n, p in named.items())
    return engine, named


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("entropy", [0.0, 0.01])
def test_ppo_is_that_of_stable_baselines(env: str, entropy: float) -> None:
    """The loss of a minibatch, and its gradients, for the policy and for the critic."""
    theirs = collected(env, ent_coef=entropy, clip_range=0.05)
    policy, policy_names = trained_on(theirs, "action")
    critic, critic_names = trained_on(theirs, "value")
    (data,) = theirs.rollout_buffer.get(64)
    actions = data.actions.long().flatten() if env == "CartPole-v1" else data.actions
    index, no = torch.arange(64), torch.zeros(64, dtype=torch.bool)
    samples = Transitions(
        index=index,
        group=index,
        lengths=torch.ones(64, dtype=torch.int64),
        observations=torch.stack([data.observations, data.observations + 1], 1).flatten(0, 1),
        actions=actions,
        logprobs=data.old_log_prob,
        versions=index,
        reward_values=torch.zeros(64),
        terminated=no,
        truncated=no,
        finals=[[] for _ in index],
    )
    batch = TrainBatch(samples, advantages=data.advantages, returns=data.returns)
    metrics = Metrics()
    loss = PPOLoss(clip=0.05, entropy_bonus=entropy)
    weight = policy.accumulate(batch, loss, metrics)
    assert critic.accumulate(batch, ValueLoss(clip=None), metrics) == weight == 64
    theirs.train()
    said, made = theirs.logger.name_to_value, metrics.values()
    whole = said["train/policy_gradient_loss"] + entropy * said["train/entropy_loss"]
    scale = 1 + abs(whole)
    assert made["train/loss"] == pytest.approx(whole, abs=1e-6 * scale)
    assert made["value/loss"] == pytest.approx(said["train/value_loss"] / 2, rel=1e-6)
    assert 0 < made["train/clip_fraction"] < 1
    # Their value loss is the squared error, halved by `vf_coef`; ours is half of it.
    for engine, names in ((policy, policy_names), (critic, critic_names)):
        for name, gradient in engine.gradients().items():
            expected = cast("Tensor", names[name].grad)
            near = 1e-5 * max(1, float(expected.abs().max()))
            torch.testing.assert_close(gradient / weight, expected, rtol=1e-4, atol=near)


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
        weight = engine.accumulate(batch, PPOLoss(), Metrics())
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
    assert "needs `value`" in refused(lambda: policy.accumulate(samples, ValueLoss(), Metrics()))
    assert "needs `action`" in refused(lambda: critic.accumulate(samples, PPOLoss(), Metrics()))


def test_a_model_of_transformers_does_not_act(make: Callable[..., TorchEngine]) -> None:
    engine = make(trainable=True)
    seen = observed(drawn(2, 3))
    said = refused(lambda: engine.act(seen, Key(0, "a", 0), 0, greedy=True))
    assert "is a model of transformers with head `lm`; this needs a small network" in said
    batch = TrainBatch(transitions([2]), advantages=torch.zeros(2))
    assert "needs a small network" in refused(
        lambda: engine.accumulate(batch, PPOLoss(), Metrics())
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
