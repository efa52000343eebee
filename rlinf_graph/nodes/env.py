"""Environments: begin, act, step, judge states, and look at how good a policy is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlinf_graph.dsl.env import Env
from rlinf_graph.dsl.model import Model
from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir import steps
from rlinf_graph.ir.batches import (
    Actions,
    Observations,
    Returns,
    StepValues,
    TokenAdvantages,
    Transitions,
)
from rlinf_graph.ir.diagnostic import Diagnostic
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Place, Port, Role, Unit
from rlinf_graph.ir.work import Forward, HostWork, Lengths, Volume
from rlinf_graph.nodes.execution import engine_of, environments_of, execution, metric

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_PER_STEP = 20e-6
"""Of one core, for a step of one copy; assumed where the user declares nothing."""

SECONDS_PER_CUT = 0.2e-6
"""Of one core, to make a sample of a step; an assumption."""

STEPS_AN_EPISODE = 500
"""Of an evaluation, to plan with; an assumption."""

ONE = Lengths.fixed(1, "declared")


def _copies(call: Call) -> tuple[Volume, ...]:
    (env,) = call.envs.values()
    return (Volume(env.count, ONE),)


def _stepped(call: Call) -> tuple[Volume, ...]:
    return (call.volumes["actions"],) * 2


def _step_work(call: Call) -> HostWork:
    declared = call.options["seconds"]
    origin = "declared default" if declared is None else "declared"
    each = SECONDS_PER_STEP if declared is None else declared
    return HostWork(call.volumes["actions"].samples, each, origin)


def _act_work(call: Call) -> Forward:
    return Forward(call.first.samples, ONE, head="action")


def _values_work(call: Call) -> Forward:
    volume = call.volumes["episode"]
    return Forward(volume.samples, volume.lengths, head="value")


def _fits(node: Node, graph: Graph) -> Iterator[Diagnostic]:
    """A small network acts in the environment that it was made for."""
    for use in node.models:
        made_for = graph.model(use.model).env
        for param, env in node.envs:
            if made_for and made_for != env:
                yield Diagnostic(
                    "RG0105",
                    f"`{use.model}` is made for environment `{made_for}`, and `{node.name}` is "
                    f"given `{env}`",
                    node.at(param),
                )


@node(volume=_copies)
def reset(env: Env) -> Observations:
    """Begin an episode in every copy of an environment; `n` observations."""
    return environments_of("env", env).reset()


@node(unit=Unit.SAMPLE, volume=_stepped, work=_step_work)
def step(
    env: Env,
    observations: Observations,
    actions: Actions,
    *,
    seconds: float | None = None,  # noqa: ARG001  read when planning
) -> tuple[Observations, Transitions]:
    """Take one step in `n` copies of an environment; an episode that ends is followed by another.

    Args:
        env: its copies go on where they stand.
        observations: in which the actions were chosen.
        actions: one for each copy.
        seconds: what to plan with: of one core, for a step of one copy; 20 µs are assumed.

    Returns:
        The observations that come next: of a new episode, where one has ended. And what happened;
        emits `episode/return`, `episode/length` and `episode/count` of the episodes that ended.
    """
    return environments_of("env", env).step(observations, actions)


@node(
    unit=Unit.SAMPLE, ports={"policy": Port.SERVED}, heads={"policy": ("action",)}, work=_act_work
)
def act(policy: Model, observations: Observations, *, greedy: bool = False) -> Actions:
    """Choose an action for each of `n` observations.

    Args:
        policy: its served port is read.
        observations: of environments.
        greedy: take the most probable action, or the mean, instead of drawing one. A draw depends
            on the seed, the step and the number of the copy only.
    """
    here = execution()
    version = here.versions.get("policy", 0)
    return engine_of("policy", policy).act(observations, here.key, version, greedy=greedy)


@node(
    label="values",
    unit=Unit.SAMPLE,
    ports={"critic": Port.TRAINED},
    heads={"critic": ("value",)},
    work=_values_work,
)
def step_values(critic: Model, episode: Transitions) -> StepValues:
    """State values along the steps of environments, one more than the steps of each."""
    found, finals = engine_of("critic", critic).step_values(episode)
    return StepValues(
        index=episode.index,
        group=episode.group,
        lengths=episode.lengths,
        values=found,
        finals=finals,
    )


def _cut_volume(call: Call) -> tuple[Volume, ...]:
    volume = call.volumes["episode"]
    return (Volume(round(volume.tokens), ONE),) * 3


def _cut_work(call: Call) -> HostWork:
    return HostWork(round(call.volumes["episode"].tokens), SECONDS_PER_CUT, "declared default")


@node(volume=_cut_volume, work=_cut_work)
def each_step(
    episode: Transitions, advantages: TokenAdvantages, returns: Returns
) -> tuple[Transitions, TokenAdvantages, Returns]:
    """Make a sample of every step, so that a minibatch is drawn from all steps of all copies.

    Args:
        episode, advantages, returns: of the same copies and steps.

    Returns:
        The same in as many samples as there are steps, copy after copy.
    """
    return steps.each_step(episode), steps.each_step(advantages), steps.each_step(returns)


def _played(call: Call) -> Forward:
    return Forward(call.options["episodes"] * STEPS_AN_EPISODE, ONE, head="action")


def _nothing(_call: Call) -> tuple[Volume, ...]:
    return ()


def _play_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:
    """Counts are positive, and the policy sees what it is trained on."""
    for name in ("every", "episodes"):
        if node.option(name) < 1:
            message = f"`{name}` of `{node.name}` is {node.option(name)}; it has to be at least 1"
            yield Diagnostic("RG0104", message, node.at(name))
    yield from _fits(node, graph)
    for param, name in node.envs:
        if graph.env(name).normalize:
            yield Diagnostic(
                "RG0104",
                f"`{node.name}` plays beside the workers of `{name}`, and does not know by which "
                "moments its observations are normalized",
                node.at(param),
                help=("watch episode/return, which every training episode emits",),
            )


@node(
    role=Role.EVALUATE,
    place=Place.DEVICE,
    ports={"policy": Port.SERVED},
    heads={"policy": ("action",)},
    volume=_nothing,
    work=_played,
    check=_play_check,
)
def play(
    policy: Model,
    env: Env,
    *,
    episodes: int = 100,
    every: int = 1,  # noqa: ARG001  read when lowering
    greedy: bool = True,
    name: str = "evaluation",
) -> None:
    """Play whole episodes in copies of an environment that are used for nothing else.

    Args:
        policy: its served port is read.
        env: what to play in.
        episodes: how many; each copy plays the same number.
        every: in every that many iterations, beginning with the first.
        greedy: as in `act`.
        name: of the metrics: `{name}/return`, `{name}/return_min` and `{name}/return_max`.
    """
    here, engine = execution(), engine_of("policy", policy)
    version = here.versions.get("policy", 0)
    count = iter(range(10**9))

    def choose(observations: Observations) -> Actions:
        key = type(here.key)(here.seed, here.node, here.iteration, (next(count),))
        return engine.act(observations, key, version, greedy=greedy)

    found: Tensor = environments_of("env", env).play(choose, episodes)
    metric(f"{name}/return", found)
    metric(f"{name}/return_min", found, reduce="min")
    metric(f"{name}/return_max", found, reduce="max")
