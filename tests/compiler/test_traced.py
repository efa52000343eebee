"""A node around a module of one's own, from its function to the text of explain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlinf_graph import rl
from rlinf_graph.cli.api import compile_pipeline, run_compiled
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.fit import estimate_of, fit_all
from rlinf_graph.compiler.cost.profile import Profile
from rlinf_graph.compiler.explain import explain, render_text
from rlinf_graph.compiler.explain.report import Row
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.dsl.pipeline import Pipeline
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.measurement import Measurement

TESTS = Path(__file__).parents[1]
policy = rl.Model("Qwen/Qwen2.5-7B-Instruct")
small = rl.Model(str(TESTS / "plans" / "decoder"), weights="random")
TOKENS = rl.Input(("samples", "tokens"), "int64")


class Judge(nn.Module):
    """An encoder of 0.7 billion weights with a score."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32000, 2048)
        layer = nn.TransformerEncoderLayer(2048, 16, 8192, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 12)
        self.head = nn.Linear(2048, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)).mean(1))


class Looking(Judge):
    """One that looks at its values."""

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.body(self.embed(tokens)).mean(1)
        return self.head(hidden if hidden.sum().item() > 0 else -hidden)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens)).mean((1, 2))


def work(call: rl.Call) -> rl.Work:
    return rl.traced(Judge, TOKENS, volume=call.first, batch=8)


def looking_work(call: rl.Call) -> rl.Work:
    return rl.traced(Looking, TOKENS, volume=call.first, batch=8)


def tiny_work(call: rl.Call) -> rl.Work:
    return rl.traced(Tiny, TOKENS, volume=call.first, batch=8)


@rl.node(unit=rl.SAMPLE, place=rl.Place.DEVICE, work=work)
def rated_by_module(rollouts: rl.Rollouts) -> rl.Rewards: ...


@rl.node(unit=rl.SAMPLE, place=rl.Place.DEVICE, work=looking_work)
def looked(rollouts: rl.Rollouts) -> rl.Rewards: ...


@rl.node(place=rl.Place.DEVICE)
def nothing_said(rollouts: rl.Rollouts) -> rl.Rewards: ...


@rl.node(work=work)
def beside(rollouts: rl.Rollouts) -> rl.Rewards: ...


@rl.node(unit=rl.SAMPLE, place=rl.Place.DEVICE, work=tiny_work)
def scored(rollouts: rl.Rollouts, rewards: rl.Rewards) -> rl.Rewards:
    judge = Tiny().requires_grad_(False)
    answers = rollouts.tokens.split(rollouts.lengths.tolist())
    return rewards.replace(values=torch.cat([judge(row[None] % 64) for row in answers]))


def pipeline_of(node: object) -> Pipeline:
    def grpo() -> None:
        prompts = rl.dataset("openai/gsm8k", batch=128)
        rollouts = rl.rollout(policy, prompts, samples=8, max_tokens=1024, lengths=400)
        advantages = rl.group_advantages(node(rollouts))
        rl.sync(rl.train(policy, rollouts, advantages), into=policy)

    return rl.pipeline(grpo)


@rl.pipeline
def on_processors() -> None:
    prompts = rl.dataset(str(TESTS.parent / "demo/arithmetic/train.jsonl"), batch=8)
    rollouts = rl.rollout(small, prompts, samples=4, max_tokens=4, lengths=4)
    rewards = scored(rollouts, rl.verify(rollouts, lambda answer, truth: 0.0))
    rl.sync(rl.train(small, rollouts, rl.group_advantages(rewards), minibatch=16), into=small)


def row_of(compiled: Compiled, name: str) -> Row:
    return next(row for row in explain(compiled).rows if row.name == name)


def test_a_reward_model_of_ones_own_has_seconds_memory_and_devices() -> None:
    compiled = compile_pipeline(pipeline_of(rated_by_module), "8xH100")
    row = row_of(compiled, "rated_by_module")
    assert row.origin == "roofline"
    assert row.count > 0
    tokens = compiled.graph.node("rated_by_module").volume[0].tokens
    weights = sum(weight.numel() for weight in _judge().parameters())
    assert row.memory is not None
    assert dict(row.memory.parts)["weights"] == 4 * weights
    flops = 2 * (weights - 32000 * 2048) * tokens
    # float32: at most the peak of all devices, at least a third of it for products, and attention.
    assert 1 < row.estimate.part("work") * row.count * 67e12 / flops < 3
    assert "captured" not in render_text(explain(compiled))


def test_what_could_not_be_captured_is_told_and_counted() -> None:
    compiled = compile_pipeline(pipeline_of(looked), "8xH100")
    whole = row_of(compile_pipeline(pipeline_of(rated_by_module), "8xH100"), "rated_by_module")
    row, text = row_of(compiled, "looked"), " ".join(render_text(explain(compiled)).split())
    assert row.origin == "declared default"
    assert row.estimate.busy_s * row.count >= whole.estimate.busy_s * whole.count * 0.99
    assert "launches not captured (aten._local_scalar_dense at" in text
    assert "test_traced.py:" in text
    assert "`rlinf-graph profile` measures them" in text


@pytest.mark.parametrize(
    ("node", "said"),
    [(nothing_said, "nothing says how much"), (beside, "what is traced needs a device")],
)
def test_a_node_without_work_or_without_a_device_is_a_diagnostic(node: object, said: str) -> None:
    with pytest.raises(rl.CompileError, match=said) as raised:
        compile_pipeline(pipeline_of(node), "8xH100")
    (found,) = raised.value.diagnostics
    assert found.code == "RG0509"
    assert found.span is not None


def test_it_runs(tmp_path: Path) -> None:
    compiled = compile_pipeline(on_processors, "2xcpu", runnable=True)
    result = run_compiled(compiled, iterations=1, folder=tmp_path)
    assert any(event.group == "scored" and event.devices for event in result.events)


def test_a_measurement_takes_the_place_of_the_estimate() -> None:
    cluster, graph = load_cluster("2xcpu"), run_passes(on_processors.build())
    costs = CostModel(graph, cluster)
    made = [
        Measurement(node="scored", kind="chunk", samples=n, lengths=(6.0,), seconds=(0.1 + n,))
        for n in (8, 32)
    ]
    (fitted,) = fit_all(costs, made)
    assert fitted.correction.subject.device == "cpu-core"
    profile = Profile.model_construct(corrections=(fitted.correction,))
    corrected, node = CostModel(graph, cluster, profile), graph.node("scored")
    for each in made:
        assert estimate_of(corrected, each) == pytest.approx(each.median, rel=0.1)
    settings = compile_pipeline(on_processors, "2xcpu").plan.settings("scored")
    assert corrected.node(node, range(settings.parallel.dp), settings).origin == "profiled"


def _judge() -> nn.Module:
    with torch.device("meta"):
        return Judge()
