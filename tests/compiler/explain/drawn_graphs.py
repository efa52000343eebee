"""Graphs to draw: pipelines, graphs with loops, and random ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hypothesis import strategies as st

from rlinf_graph import rl
from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.graph import Graph, Input, Loop, ModelDef, ModelUse, Node
from rlinf_graph.ir.node_type import Port, Role, Unit

policy = rl.Model("Qwen/Qwen2.5-7B-Instruct")
reference = policy.frozen()
critic = rl.Model("Qwen/Qwen2.5-1.5B", name="critic", head="value")
judge = rl.Model("Skywork/Skywork-Reward-V2-Llama-3.1-8B", head="score")

sim = rl.Env("HalfCheetah-v5", count=256)
actor = rl.Model("mlp:64x64", head="action", env=sim)
state_critic = rl.Model("mlp:64x64", head="value", env=sim)


def right(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def grpo(samples: int = 8, max_staleness: int = 1) -> None:
    prompts = rl.dataset("openai/gsm8k", batch=512)
    rollouts = rl.rollout(policy, prompts, samples=samples)
    rewards = rl.verify(rollouts, right)
    before = rl.logprobs(reference, rollouts)
    advantages = rl.group_advantages(rewards)
    loss = rl.GRPOLoss(kl=1e-3)
    weights = rl.train(policy, rollouts, advantages, reference=before, loss=loss)
    rl.sync(weights, into=policy, max_staleness=max_staleness, every=4)
    rl.evaluate(policy, rl.dataset("openai/gsm8k", split="test"), right, every=20)


@rl.pipeline
def ppo() -> None:
    prompts = rl.dataset("openai/gsm8k", batch=512)
    rollouts = rl.rollout(policy, prompts)
    rewards = rl.score(judge, rollouts)
    rewards = rl.kl_penalty(rewards, rollouts, rl.logprobs(reference, rollouts), beta=0.05)
    values = rl.values(critic, rollouts)
    advantages, returns = rl.gae(rewards, values, trace=0.95)
    learned = rl.train(policy, rollouts, advantages, loss=rl.PPOLoss(), epochs=4)
    judged = rl.train(critic, rollouts, returns, old_values=values, loss=rl.ValueLoss())
    rl.sync(learned, into=policy)
    rl.sync(judged, into=critic)


@rl.pipeline
def embodied() -> None:
    def interact(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
        return rl.step(sim, observations, rl.act(actor, observations))

    start = rl.state(rl.reset(sim))
    last, episode = rl.unroll(interact, start=start, length=80)
    rl.carry(last, into=start)
    values = rl.values(state_critic, episode)
    advantages, returns = rl.gae(episode.rewards, values, discount=0.99, whiten=True)
    rl.sync(rl.train(actor, episode, advantages, loss=rl.PPOLoss()), into=actor)
    rl.sync(rl.train(state_critic, episode, returns, loss=rl.ValueLoss()), into=state_critic)


Given = tuple[str | Source, str]
"""Where an input comes from, and its type."""


def node(name: str, *inputs: Given, outputs: str = "", start: str = "", **more: Any) -> Node:
    """A node; its type is the first word of its name."""
    made = tuple(outputs.split())
    edges = [Input(f"input_{i}", _source(s), kind) for i, (s, kind) in enumerate(inputs)]
    edges += [Input("start", Source(start), made[0])] if start else []
    given = {"role": Role.COMPUTE, "unit": Unit.SAMPLE} | more
    return Node(name, name.split()[0], inputs=tuple(edges), outputs=made, **given)


def _source(given: str | Source) -> Source:
    return given if isinstance(given, Source) else Source(given)


def sync(model: str, max_staleness: int = 0, every: int = 1) -> Node:
    uses = (ModelUse("into", model, Port.SERVED),)
    values = (("max_staleness", max_staleness), ("every", every))
    return node(
        f"sync {model}", (f"train {model}", "Weights"), role=Role.SYNC, unit=Unit.BATCH,
        models=uses, options=values,
    )  # fmt: skip


def train(model: str, *inputs: Given) -> Node:
    uses = (ModelUse("model", model, Port.TRAINED),)
    return node(
        f"train {model}", *inputs, outputs="Weights", role=Role.TRAIN, unit=Unit.BATCH, models=uses
    )


def reads(model: str, port: Port = Port.SERVED) -> tuple[ModelUse, ...]:
    return (ModelUse("model", model, port),)


def nested() -> Graph:
    """Dialogs in a loop of turns, in a loop that goes on until there are enough of them."""
    refill, dialog = "loop refill", "loop dialog"
    turns = Loop(Source("answer tools"), (), 12, "done", 4.0)
    rounds = Loop(Source("count"), (Source("keep"),), 6, "found", 2.5)
    kept = Source(refill, 1)
    return Graph("agent", (
        node("dataset", outputs="Prompts", role=Role.SOURCE),
        node("demand", outputs="Demand", role=Role.SOURCE),
        node("draw", (refill, "Demand"), ("dataset", "Prompts"), outputs="Prompts", region=refill),
        node("open", ("draw", "Prompts"), outputs="Dialogs", region=refill),
        node("continue policy", (dialog, "Dialogs"), outputs="Dialogs", region=dialog,
             models=reads("policy")),
        node("answer tools", ("continue policy", "Dialogs"), (refill, "Demand"), outputs="Dialogs",
             region=dialog, envs=(("env", "tools"),)),
        node(dialog, start="open", outputs="Dialogs", region=refill, role=Role.REGION, loop=turns),
        node("verify", (dialog, "Dialogs"), outputs="Rewards", region=refill),
        node("keep", (dialog, "Dialogs"), ("verify", "Rewards"), outputs="Dialogs", region=refill,
             unit=Unit.GROUP),
        node("count", (refill, "Demand"), ("keep", "Dialogs"), outputs="Demand", region=refill,
             unit=Unit.BATCH),
        node(refill, start="demand", outputs="Demand Dialogs", role=Role.REGION, loop=rounds),
        node("group_advantages", (kept, "Dialogs"), outputs="Advantages", unit=Unit.GROUP),
        train("policy", (kept, "Dialogs"), ("group_advantages", "Advantages")),
        sync("policy", max_staleness=2, every=4),
    ), (ModelDef("policy", "policy"),))  # fmt: skip


@dataclass
class _Grown:
    """A random graph while it grows: any node may take from those before it that it can see."""

    draw: st.DrawFn
    nodes: list[Node] = field(default_factory=list[Node])
    names: Iterator[int] = field(default_factory=count)

    def fill(self, scope: str, seen: list[Source], depth: int) -> list[Source]:
        """Nodes and loops of a scope; what they make."""
        made: list[Source] = []
        for _ in range(self.draw(st.integers(1, 5))):
            visible = [*seen, *made]
            if depth < 2 and visible and self.draw(st.integers(0, 3)) == 0:
                made += self.loop(scope, visible, depth)
            else:
                made += self.plain(scope, visible)
        return made

    def plain(self, scope: str, visible: list[Source]) -> list[Source]:
        name = f"node {next(self.names)}"
        taken = self.draw(st.lists(st.sampled_from(visible), max_size=3)) if visible else []
        outputs = " ".join(["Rollouts", "ReferenceLogprobs"][: self.draw(st.integers(1, 2))])
        model = self.draw(st.sampled_from(["", "", "policy", "critic"]))
        port = self.draw(st.sampled_from([Port.SERVED, Port.TRAINED]))
        unit = self.draw(st.sampled_from(Unit))
        more = {"models": reads(model, port)} if model else {}
        inputs = [(source, "Rollouts") for source in taken]
        self.nodes.append(node(name, *inputs, outputs=outputs, region=scope, unit=unit, **more))
        return [Source(name, output) for output in range(len(outputs.split()))]

    def loop(self, scope: str, visible: list[Source], depth: int) -> list[Source]:
        name = f"loop {next(self.names)}"
        start = self.draw(st.sampled_from(visible))
        place = len(self.nodes)
        body = self.fill(name, [*visible, Source(name)], depth + 1)
        carried = self.draw(st.sampled_from(body))
        emitted = tuple(self.draw(st.lists(st.sampled_from(body), max_size=2)))
        until = self.draw(st.sampled_from(["", "done"]))
        outputs = ("Rollouts",) * (1 + len(emitted))
        inputs = (Input("start", start, "Rollouts"),)
        region = Node(name, "unroll", Role.REGION, Unit.BATCH, inputs, outputs=outputs,
                      region=scope, loop=Loop(carried, emitted, 8, until, 3.0))  # fmt: skip
        self.nodes.insert(place, region)
        return [Source(name, output) for output in range(len(outputs))]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs with loops up to two deep, a state, and two models that are trained and delivered."""
    grown = _Grown(draw)
    first = Source("state")
    made = grown.fill("", [first], 0)
    kept = (
        Input("value", Source("first"), "Rollouts"),
        Input("value", draw(st.sampled_from(made)), "Rollouts", lag=1),
    )
    tail: list[Node] = []
    for model in ("policy", "critic")[: draw(st.integers(0, 2))]:
        tail += [train(model, (draw(st.sampled_from(made)), "Rollouts")), sync(model)]
    return Graph("random", (
        node("first", outputs="Rollouts", role=Role.SOURCE),
        Node("state", "state", Role.STATE, Unit.BATCH, kept, outputs=("Rollouts",)),
        *grown.nodes,
        *tail,
    ), tuple(ModelDef(name, name) for name in ("policy", "critic")))  # fmt: skip
