"""The closed form of an iteration beside a simulation of every instruction."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.lower import lower
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.compiler.schedule.candidate import Candidate, to_plan
from rlinf_graph.compiler.schedule.flow import Flow
from rlinf_graph.compiler.schedule.items import Cut
from rlinf_graph.compiler.schedule.loads import Loads
from rlinf_graph.compiler.schedule.pins import Pins
from rlinf_graph.compiler.schedule.placing import Placer
from rlinf_graph.compiler.schedule.rows import Maker
from rlinf_graph.compiler.schedule.search import Search
from rlinf_graph.compiler.schedule.solve import Answer
from rlinf_graph.compiler.schedule.space import Space
from rlinf_graph.compiler.simulate import simulate
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.graph import Graph
from rlinf_graph.nodes.plugins import load_plugins
from tests.compiler.schedule.listing import complete_trees, everything
from tests.compiler.schedule.test_search import grpo, space_of

PIPELINES = Path(__file__).parents[3] / "pipelines"
PLANS = 50


def loaded(name: str) -> Graph:
    load_plugins()
    return load_pipeline(str(PIPELINES / f"{name}.py"))[0].build()


@cache
def sampled(name: str) -> tuple[Space, list[Answer]]:
    """Plans from all over a space."""
    graph = grpo(16, 4, 512, 2, 1e-3, 2) if name == "grpo" else loaded(name)
    cluster = load_cluster("4xH100" if name == "grpo" else "2xcpu")
    checked = run_passes(graph)
    space = Search(checked, cluster, CostModel(checked, cluster)).space(Pins())
    listed = list(everything(space, stride=211 if name == "grpo" else 1))
    chosen = np.random.default_rng(7).permutation(len(listed))[: 2 * PLANS]
    return space, [listed[int(number)] for number in chosen]


@pytest.mark.parametrize("name", ["grpo", "ppo_cartpole", "tool_agent", "dapo_arithmetic"])
def test_the_period_of_a_simulation_is_the_closed_form(name: str) -> None:
    space, answers = sampled(name)
    done = [(a, made) for a in answers if (made := space.simulated(a)) is not None][:PLANS]
    assert len(done) == PLANS
    ratios = [made.seconds / answer.seconds for answer, made in done]
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) <= 1.02


@pytest.mark.parametrize("chunks", [1, 2, 4, 8, 16, 32, 64])
def test_the_first_iteration_of_a_simulation_is_the_closed_form(chunks: int) -> None:
    space = space_of(grpo(64, 4, 512, 0, 1e-3, 1), load_cluster("4xH100"))
    cut = Cut(chunks, 1)
    instance = space.items.instance(cut)
    assert instance is not None
    maker, compared = Maker(instance, Loads(instance)), 0
    for tree in complete_trees(instance):
        rows = maker.rows(tree, 0.0, float("inf"))
        rows = rows.at(np.arange(len(rows.load))[:: max(1, len(rows.load) // 3)][:3])
        flow = Flow(instance, rows)
        if not len(rows.load) or not flow.order:
            continue
        flow.seconds(0)
        ends = np.maximum.reduce([moments.release for moments in flow._done[0].values()])
        for row, closed in enumerate(ends):
            answer = Answer(0, tree, tuple(rows.picks[row]), tuple(rows.away[row]), 0, 0.0)
            candidate = Placer(space.items, cut, answer).candidate()
            if candidate is not None:
                compared += 1
                assert makespan(space, candidate) == pytest.approx(float(closed), rel=0.05)
    assert compared >= 5


def makespan(space: Space, candidate: Candidate) -> float:
    items = space.items
    plan = to_plan(candidate, items.graph, items.cluster)
    program = lower(items.graph, plan)
    events = simulate(program, items.graph, plan, items.cluster, items.costs, 1)
    return max(event.end for event in events)
