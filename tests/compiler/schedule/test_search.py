"""What a search of a pipeline finds, and what every plan of its space has to hold."""

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
from rlinf_graph.compiler.schedule.pins import Pins
from rlinf_graph.compiler.schedule.search import Search
from rlinf_graph.compiler.schedule.space import Space
from rlinf_graph.compiler.schedule.tree import partitions
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import leaves_of
from tests.compiler.schedule.listing import complete_trees, everything

policy = rl.Model("Qwen/Qwen2.5-1.5B-Instruct")
reference = policy.frozen()
NODES = ["logprobs reference", "rollout policy", "train policy"]


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


def space_of(graph: Graph, cluster: Cluster) -> Space:
    checked = run_passes(graph)
    return Search(checked, cluster, CostModel(checked, cluster)).space(Pins())


graphs = st.builds(
    grpo,
    batch=st.sampled_from([4, 8]),
    samples=st.sampled_from([2, 4]),
    lengths=st.sampled_from([64, 512, 4096]),
    staleness=st.integers(0, 2),
    kl=st.sampled_from([0.0, 1e-3]),
    minibatches=st.sampled_from([1, 2]),
)
clusters = st.sampled_from(["1xH100", "2xH100", "4xH100", "2xH20+2xH100"])


@settings(max_examples=20, deadline=None)
@given(graph=graphs, cluster=clusters, start=st.integers(0, 10**6))
def test_every_plan_is_sound_and_none_beats_its_closed_form_or_the_answer(
    graph: Graph, cluster: str, start: int
) -> None:
    machines = load_cluster(cluster)
    best = compile_graph(graph, machines).plan.estimate
    space = space_of(graph, machines)
    listed = list(everything(space, stride=97))
    for answer in [listed[(start + i) % len(listed)] for i in range(min(12, len(listed)))]:
        done = space.simulated(answer)
        if done is None:
            continue
        check_plan(space.items.graph, done.plan, machines)
        assert sorted(leaf.node for leaf in leaves_of(done.plan.placement)) == sorted(
            name for item in range(len(space.items.names)) for name in space.items.nodes(item)
        )
        assert done.seconds >= answer.seconds * (1 - 1e-9)
        assert best
        assert done.seconds >= best.bound_s * (1 - 1e-9)


@settings(max_examples=6, deadline=None)
@given(graph=graphs)
def test_one_more_device_is_never_worse(graph: Graph) -> None:
    seconds = [compile_graph(graph, load_cluster(f"{n}xH100")).plan.estimate for n in (1, 2, 3)]
    times = [estimate.iteration_s for estimate in seconds if estimate]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(times))


def test_the_same_plan_again() -> None:
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


def test_a_pin_inside_another_one_is_kept() -> None:
    compiled = pinned({"rollout": "0-7", "train policy": "2-5"})
    assert compiled.plan.devices("rollout policy") == tuple(range(8))
    assert compiled.plan.devices("train policy") == (2, 3, 4, 5)


def test_placements_as_rlinf_writes_them() -> None:
    nodes = pinned({"actor,rollout": "0-7", "inference": "0-3:0-1"}).plan
    assert nodes.devices("train policy") == nodes.devices("rollout policy") == tuple(range(8))
    assert nodes.devices("logprobs reference") == (0, 1, 2, 3)
    assert nodes.settings("logprobs reference").parallel.dp == 2
    assert pinned({"actor": "all"}).plan.devices("train policy") == tuple(range(8))


@pytest.mark.parametrize("text", ["0-7:0-15", "0-3,3", "0-3:1-4", "0-1:0,2-3", "0-3,,5", "1-0"])
def test_placements_that_cannot_be(text: str) -> None:
    with pytest.raises(CompileError, match="RG0407"):
        pinned({"rollout": text})


def test_a_mode_and_settings_are_kept() -> None:
    plan = pinned({"plan": "disaggregated staleness 1", "train": "engine torch fsdp"}).plan
    assert (plan.mode, plan.syncs["sync policy"].staleness) == ("disaggregated", 1)
    assert plan.settings("train policy").engine == "torch"
    assert plan.settings("train policy").parallel.shard == "fsdp"
    assert not pinned({"train": "offloaded"}).plan.settings("train policy").resident


def test_given_tensor_parallelism_is_used() -> None:
    compiled = pinned({"rollout": "tp 2"})
    assert compiled.plan.settings("rollout policy").parallel.tp == 2


@pytest.mark.parametrize(
    ("pins", "code"),
    [
        ({"rollout": "0-15"}, "RG0402"),
        ({"rolout": "0-7"}, "RG0407"),
        ({"rollout": "first"}, "RG0407"),
        ({"rollout": "0-3", "logprobs": "2-5", "train": "4-7"}, "RG0407"),
    ],
)
def test_pins_that_cannot_be_kept(pins: dict[str, str], code: str) -> None:
    with pytest.raises(CompileError) as raised:
        pinned(pins)
    assert [d.code for d in raised.value.diagnostics] == [code]


def test_trees_are_listed_without_repeats() -> None:
    _cut, instance = space_of(grpo(8, 2, 64, 0, 1e-3), load_cluster("4xH100")).instances[0]
    found = [str(tree) for tree in complete_trees(instance)]
    assert len(found) == len(set(found)) == 7
    assert {"turn(0, 1, 2)", "split(0, 1, 2)", "turn(0, split(1, 2))"} <= set(found)
    assert "turn(split(0, 2), 1)" not in found


def test_partitions_are_counted_by_bell_numbers() -> None:
    counts = [len(list(partitions((1 << n) - 1))) for n in range(2, 7)]
    assert counts == [1, 4, 14, 51, 202]
