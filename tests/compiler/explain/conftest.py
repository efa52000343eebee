"""Pipelines with costs in round numbers: the figures of a report can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from rlinf_graph import rl
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.cost import CostModel, NodeCost
from rlinf_graph.compiler.cost.constants import CONSTANTS, Constants
from rlinf_graph.compiler.cost.uncertainty import Widths
from rlinf_graph.compiler.explain import Report, explain
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.compiler.schedule.search import Search
from rlinf_graph.ir.cluster import Cluster, DeviceType, Link, NodeGroup
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.plan import NodePlan, Plan
from rlinf_graph.ir.work import Generate, Train

policy = rl.Model("Qwen/Qwen2.5-7B-Instruct")
reference = policy.frozen()
critic = rl.Model("Qwen/Qwen2.5-1.5B", head="value")
LINK = Link(bandwidth=100e9, latency=1e-5)


@dataclass(frozen=True)
class Figures:
    """Device seconds of an iteration; gigabytes of a device that stay, and while it runs;
    seconds to load or to offload what stays; where they come from, and how far off they may be:
    that of closed forms where nothing is said."""

    seconds: float
    keeps: float = 10.0
    works: float = 10.0
    switch: float = 1.0
    origin: str = "roofline"
    width: float = 0.0


def round_constants(widths: Widths) -> dict[str, Constants]:
    """The usual constants, other than in how far estimates may be off."""
    return {kind: replace(constants, widths=widths) for kind, constants in CONSTANTS.items()}


WIDTHS = Widths(sampling=0.4, passes=0.2, sync=0.5, iteration=0.25, compared=0.1)


class RoundCosts(CostModel):
    """Work is spread evenly over devices; switching and weights take the same everywhere."""

    def __init__(
        self,
        graph: Graph,
        cluster: Cluster,
        figures: dict[str, Figures],
        scale: float,
        widths: Widths = WIDTHS,
    ) -> None:
        super().__init__(graph, cluster, constants=round_constants(widths))
        self.figures, self.scale = figures, scale

    def within(
        self, node: Node, devices: range, settings: NodePlan, room: float
    ) -> NodeCost | None:
        if super().within(node, devices, settings, room) is None:
            return None
        return self.node(node, devices, settings)

    def node(
        self, node: Node, devices: Sequence[int], settings: NodePlan, kept: float = 0.0
    ) -> NodeCost:
        own = self.figures[node.name]
        shards = settings.parallel.dp if settings.parallel.shard == "fsdp" else 1
        sampled = isinstance(node.work, Generate)
        switch, widths = own.switch * self.scale, self.constants_of(devices).widths
        return NodeCost(
            seconds=own.seconds / len(devices),
            resident=(("weights", own.keeps / shards * 1e9),),
            working=(("activations", own.works * 1e9),),
            load_s=switch,
            offload_s=switch,
            origin=own.origin,
            width=own.width or (widths.sampling if sampled else widths.passes),
        )

    def accumulate_seconds(
        self, node: Node, devices: Sequence[int], settings: NodePlan, samples: int
    ) -> float:
        work = node.work
        assert isinstance(work, Train)
        return self.node(node, devices, settings).seconds * samples / (work.samples * work.epochs)

    def optimizer_step_seconds(
        self, node: Node, devices: Sequence[int], settings: NodePlan
    ) -> float:
        return 0.0

    def sync(
        self, model: str, source: Sequence[int], target: Sequence[int], method: str
    ) -> NodeCost:
        seconds = (2.0 if method == "broadcast" else 1.0) * self.scale
        return NodeCost(seconds, width=self.constants_of(target).widths.sync)


def right(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def grpo(max_staleness: int = 1, verifying: float = 0.001) -> None:
    prompts = rl.dataset("questions", batch=512, size=10_000, prompt_tokens=100)
    rollouts = rl.rollout(policy, prompts, samples=8, max_tokens=8192)
    rewards = rl.verify(rollouts, right, seconds=verifying)
    before = rl.logprobs(reference, rollouts)
    advantages = rl.group_advantages(rewards)
    loss = rl.GRPOLoss(kl=1e-3)
    weights = rl.train(policy, rollouts, advantages, reference=before, loss=loss, minibatch=1024)
    rl.sync(weights, into=policy, max_staleness=max_staleness)
    test = rl.dataset("questions", split="test", size=512, prompt_tokens=100)
    rl.evaluate(policy, test, right, every=20, lengths=200.0)


@rl.pipeline
def ppo(max_staleness: int = 0) -> None:
    prompts = rl.dataset("questions", batch=512, size=10_000, prompt_tokens=100)
    rollouts = rl.rollout(policy, prompts, max_tokens=1024, lengths=500.0)
    rewards = rl.verify(rollouts, right)
    rewards = rl.kl_penalty(rewards, rollouts, rl.logprobs(reference, rollouts), beta=0.05)
    values = rl.values(critic, rollouts)
    advantages, returns = rl.gae(rewards, values, trace=0.95)
    loss = rl.ValueLoss()
    learned = rl.train(policy, rollouts, advantages, loss=rl.PPOLoss(), epochs=4, minibatch=256)
    judged = rl.train(
        critic, rollouts, returns, old_values=values, loss=loss, epochs=4, minibatch=256
    )
    rl.sync(learned, into=policy, max_staleness=max_staleness)
    rl.sync(judged, into=critic)


GRPO = {
    "rollout policy": Figures(seconds=768, keeps=15, works=40),
    "evaluate policy": Figures(seconds=160, keeps=15, works=20),
    "logprobs reference": Figures(seconds=192, keeps=15, works=10),
    "train policy": Figures(seconds=512, keeps=120, works=20),
}
FAST = {
    "rollout policy": Figures(seconds=768, keeps=15, works=40, switch=20),
    "evaluate policy": Figures(seconds=160, keeps=15, works=15, switch=20),
    "logprobs reference": Figures(seconds=192, keeps=15, works=10),
    "train policy": Figures(seconds=768, keeps=400, works=20, switch=20),
}
"""Side by side is faster: on the same devices one would have to make room for the other."""

PPO = {
    "rollout policy": Figures(seconds=80, keeps=15, works=30),
    "logprobs reference": Figures(seconds=8, keeps=15, works=10),
    "values critic": Figures(seconds=4, keeps=3, works=5),
    "train policy": Figures(seconds=64, keeps=120, works=20),
    "train critic": Figures(seconds=16, keeps=24, works=10),
}


def cluster_of(devices: int, kind: str = "gpu") -> Cluster:
    memory = 80e9 if kind == "gpu" else 4e9
    device = DeviceType(
        "GPU-80GB" if kind == "gpu" else "core", kind, memory, 3e12, (("float32", 1e14),), LINK, "-"
    )
    nodes = max(1, devices // 8)
    group = NodeGroup("all", device, nodes, devices // nodes, 32, LINK, LINK)
    return Cluster("test", (group,))


@dataclass(frozen=True)
class Bench:
    """Compiles and explains with round costs."""

    def compiled(
        self,
        graph: Graph,
        cluster: Cluster,
        figures: dict[str, Figures],
        plan: Plan | None = None,
        scale: float = 1.0,
        widths: Widths = WIDTHS,
        pins: Mapping[str, str] | None = None,
    ) -> Compiled:
        checked = run_passes(graph)
        costs = RoundCosts(checked, cluster, figures, scale, widths)
        if plan is not None:
            return Compiled(checked, cluster, plan, costs)
        found = Search(checked, cluster, costs, pins=pins or {}).run()
        return Compiled(checked, cluster, found.best.plan, costs, found)

    def report(self, *args: object, **kwargs: object) -> Report:
        return without_clock(explain(self.compiled(*args, **kwargs)))  # type: ignore[arg-type]  # as compiled


def without_clock(report: Report) -> Report:
    """How long a search took is not the same twice."""
    if report.search is None:
        return report
    return replace(report, search=replace(report.search, seconds=0.4))


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="session", params=[0, 1, 2])
def found_report(request: pytest.FixtureRequest) -> Report:
    """The best plan of `grpo` on 16 devices, by its limit of staleness."""
    return Bench().report(grpo.build(max_staleness=request.param), cluster_of(16), dict(FAST))


@pytest.fixture
def grpo_figures() -> dict[str, Figures]:
    return dict(GRPO)


@pytest.fixture
def build_grpo() -> Callable[..., Graph]:
    return grpo.build


@pytest.fixture
def build_ppo() -> Callable[..., Graph]:
    return ppo.build


@pytest.fixture
def ppo_figures() -> dict[str, Figures]:
    return dict(PPO)


@pytest.fixture
def make_cluster() -> Callable[..., Cluster]:
    return cluster_of
