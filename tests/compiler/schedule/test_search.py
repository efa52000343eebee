"""The search against brute force, and what every plan it makes has to hold."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlinf_graph import rl
from rlinf_graph.compiler.check_plan import check_plan
from rlinf_graph.compiler.compile import Compiled, compile_graph
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.compiler.schedule.candidate import Candidate, to_plan
from rlinf_graph.compiler.schedule.search import Search
from rlinf_graph.compiler.schedule.trees import partitions, shapes
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import leaves_of

policy = rl.Model("Qwen/Qwen2.5-1.5B-Instruct")
reference = policy.frozen()


def grpo(
    batch: int, samples: int, lengths: int, staleness: int, kl: float, minibatches: int = 1
) -> Graph:
    @rl.pipeline
    def pipeline() -> None:
        prompts = rl.dataset("openai/gsm8k", batch=batch)
        rollouts = rl.rollout(policy, prompts, samples=samples, max_tokens=lengths, lengths=lengths)
        rewards = rl.verify(rollouts, lambda answer, truth: float(answer == truth))
        ref = rl.logprobs(reference, rollouts)
        advantages = rl.group_advantages(rewards)
        weights = rl.train(
            policy, rollouts, advantages, reference=ref, loss=rl.GRPOLoss(kl=kl),
            minibatch=batch * samples // minibatches,
        )  # fmt: skip
        rl.sync(weights, into=policy, max_staleness=staleness)

    return pipeline.build()


def everything(graph: Graph, cluster: Cluster) -> tuple[list[Candidate], Search]:
    checked = run_passes(graph)
    search = Search(checked, cluster, CostModel(checked, cluster))
    candidates, _infeasible, complete = search._enumerate({}, float("inf"))
    assert complete
    return candidates, search


graphs = st.builds(
    grpo,
    batch=st.sampled_from([4, 8]),
    samples=st.sampled_from([2, 4]),
    lengths=st.sampled_from([64, 512, 4096]),
    staleness=st.integers(0, 1),
    kl=st.sampled_from([0.0, 1e-3]),
    minibatches=st.sampled_from([1, 2]),
)


@settings(max_examples=8, deadline=None)
@given(graph=graphs, devices=st.integers(1, 2))
def test_the_answer_is_the_best_of_all_simulated_candidates(graph: Graph, devices: int) -> None:
    cluster = load_cluster(f"{devices}xH100")
    candidates, search = everything(graph, cluster)
    best = min(search.simulated(candidate).seconds for candidate in candidates)
    found = search.run()
    assert found.proved
    assert found.best.seconds == pytest.approx(best, rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(graph=graphs, devices=st.integers(1, 2))
def test_no_simulation_beats_its_bound_and_every_plan_checks(graph: Graph, devices: int) -> None:
    cluster = load_cluster(f"{devices}xH100")
    candidates, search = everything(graph, cluster)
    for candidate in candidates:
        done = search.simulated(candidate)
        assert done.seconds >= candidate.bound * (1 - 1e-9)
        check_plan(search.graph, done.plan, cluster)


@settings(max_examples=6, deadline=None)
@given(graph=graphs)
def test_one_more_device_is_never_worse(graph: Graph) -> None:
    seconds = [compile_graph(graph, load_cluster(f"{n}xH100")).plan.estimate for n in (1, 2, 3)]
    times = [estimate.iteration_s for estimate in seconds if estimate]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(times))


def test_the_same_plan_whatever_the_order_of_names() -> None:
    cluster = load_cluster("8xH100")
    first, second = (compile_graph(grpo(64, 8, 512, 1, 1e-3), cluster) for _ in range(2))
    assert first.plan == second.plan


def test_a_reference_that_no_loss_reads_is_pruned() -> None:
    compiled = compile_graph(grpo(64, 8, 512, 0, 0.0), load_cluster("8xH100"))
    assert [node.name for node in compiled.graph.nodes if "logprobs" in node.name] == []


def pinned(pins: dict[str, str], devices: str = "8xH100") -> Compiled:
    return compile_graph(grpo(64, 8, 512, 1, 1e-3), load_cluster(devices), pins=pins)


def test_pins_are_kept_and_the_rest_is_planned_around_them() -> None:
    compiled = pinned({"rollout": "4-7", "train policy": "0-3"})
    assert compiled.plan.devices("rollout policy") == (4, 5, 6, 7)
    assert compiled.plan.devices("train policy") == (0, 1, 2, 3)


def test_given_tensor_parallelism_is_used() -> None:
    compiled = pinned({"rollout": "tp 2"})
    assert compiled.plan.settings("rollout policy").parallel.tp == 2


@pytest.mark.parametrize(
    ("pins", "code"),
    [
        ({"rollout": "0-15"}, "RG0402"),
        ({"rolout": "0-7"}, "RG0407"),
        ({"rollout": "first"}, "RG0407"),
        ({"rollout": "0-3", "train": "2-5"}, "RG0407"),
    ],
)
def test_pins_that_cannot_be_kept(pins: dict[str, str], code: str) -> None:
    with pytest.raises(CompileError) as raised:
        pinned(pins)
    assert [d.code for d in raised.value.diagnostics] == [code]


def test_shapes_are_all_trees_without_repeats() -> None:
    graph = run_passes(grpo(8, 2, 64, 0, 1e-3))
    names = ["rollout policy", "logprobs reference", "train policy"]
    found = [str(shape) for shape in shapes(names, graph.flow)]
    assert len(found) == len(set(found))
    assert f"turn({', '.join(names)})" in found
    assert f"turn(split({names[0]}, {names[1]}), {names[2]})" in found
    assert not any(f"turn({names[2]}" in text for text in found)


def test_partitions_are_counted_by_bell_numbers() -> None:
    counts = [len(list(partitions(tuple("abcdef"[:n])))) for n in range(1, 7)]
    assert counts == [1, 2, 5, 15, 52, 203]


def test_leaves_hold_every_device_node_once() -> None:
    candidates, search = everything(grpo(8, 2, 64, 1, 1e-3), load_cluster("3xH100"))
    for candidate in candidates:
        plan = to_plan(candidate, search.graph, search.cluster)
        names = sorted(leaf.node for leaf in leaves_of(plan.placement))
        assert names == ["logprobs reference", "rollout policy", "train policy"]
