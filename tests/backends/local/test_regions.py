"""Loops and states: any pipeline computes what its statements say, whatever the plan."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rlinf_graph.backends.local.run import run
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.compiler.schedule.candidate import divided
from rlinf_graph.compiler.simulate import simulate
from rlinf_graph.dsl.node import node_types
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.graph_file import digest, dumps, loads
from rlinf_graph.ir.node_type import Role
from rlinf_graph.ir.plan import Leaf, PipelineRef, Plan
from rlinf_graph.ir.verify import verify
from tests.backends.local import programs
from tests.backends.local.programs import Op, count, expected, pipeline_of

ITERATIONS = 2


def compiled(ops: tuple[Op, ...], keeps: bool, groups: int) -> Compiled:
    graph = pipeline_of(ops, keeps=keeps).build()
    checked = run_passes(graph)
    plan = Plan(
        pipeline=PipelineRef(file="random.py", name=graph.name),
        placement=Leaf(node="train policy", devices=(0,)),
        regions={r.name: divided(checked, r, groups) for r in checked.with_role(Role.REGION)},
    )
    return compile_pipeline(graph, load_cluster("local"), plan=plan)


def emitted(events: Any) -> Counter[Any]:
    return Counter((event.kind, event.group, event.at) for event in events)


@pytest.mark.timeout(600)  # one that is raised inside an example would be taken for its failure
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs.programs, st.booleans(), st.sampled_from([1, 2, 4]))
def test_a_random_pipeline_computes_what_its_statements_say(
    ops: tuple[Op, ...], keeps: bool, groups: int
) -> None:
    assume(count(ops) <= 12)
    ready = compiled(ops, keeps, groups)
    graph = pipeline_of(ops, keeps=keeps).build()
    again = loads(dumps(graph))
    assert again == graph
    assert digest(again) == digest(graph)
    assert verify(again, node_types()) is again

    programs.seen.clear()
    done = run(ready.program, ready.graph, ready.plan, ready.cluster, iterations=ITERATIONS, seed=1)
    values = expected(ops, keeps=keeps, iterations=ITERATIONS)
    assert {k: programs.seen[k] for k in sorted(programs.seen)} == values

    events = simulate(
        ready.program, ready.graph, ready.plan, ready.cluster, ready.costs, ITERATIONS, exact=True
    )
    assert emitted(events) == emitted(done.events)


def test_a_loop_has_as_many_steps_as_its_longest_sample_and_no_more_than_its_length() -> None:
    """The test above would also hold of loops that never go round."""
    ops = (Op("loop", (0,), length=4, body=(Op("scaled", (0,), 1.0), Op("judged", (0,), 0.9))),)
    ready = compiled(ops, keeps=False, groups=2)
    done = run(ready.program, ready.graph, ready.plan, ready.cluster, iterations=1, seed=1)
    steps = {e.at.steps for e in done.events if e.group == "scaled"}
    assert steps == {(0,), (1,), (2,), (3,)}
    (values,) = programs.seen[0]
    assert len(values) == programs.COUNT
    assert min(v for _i, v in values) > 0.9


def test_a_loop_that_nobody_reads_goes_with_the_loops_inside_it() -> None:
    inner = Op("loop", (0,), length=4, body=(Op("scaled", (0,), 0.75), Op("scaled", (0,), 0.5)))
    unread = Op(
        "loop", (0,), length=2, body=(Op("scaled", (0,), 0.25), inner, Op("scaled", (0,), 0.5))
    )
    ops = (Op("scaled", (0,), 1.0), unread, Op("scaled", (1,), 1.0))
    ready = compiled(ops, keeps=False, groups=1)
    assert [n.name for n in ready.graph.nodes if n.region or n.loop] == []
    run(ready.program, ready.graph, ready.plan, ready.cluster, iterations=1, seed=1)
    assert programs.seen[0] == expected(ops, keeps=False, iterations=1)[0]


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    programs.seen.clear()
