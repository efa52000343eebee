import pytest

from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.packed import expected_longest
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph, ModelDef, Node
from rlinf_graph.ir.node_type import Role, Unit
from rlinf_graph.ir.work import Forward, Generate, HostWork, Lengths, Train, Volume

TAILED = Lengths((100.0, 200.0, 300.0, 400.0, 4000.0), "declared")
MEAN = Lengths.fixed(1000, "declared")
ROLLOUT = Generate(4096, 200, TAILED, 8)
TRAIN = Train(1024, TAILED, 2, 8)


def test_parts_have_causes_and_add_up(case) -> None:
    made = [
        case(ROLLOUT, tp=2, dp=4, engine="vllm"),
        case(Forward(512, TAILED), tp=2, dp=4, micro_batch=4),
        case(TRAIN, tp=2, dp=4, shard="fsdp", micro_batch=2),
    ]
    causes = [{name for name, _ in c.cost().parts} for c in made]
    assert causes[0] == {"prefill", "decode", "tp communication", "launch"}
    assert {"forward", "tp communication"} <= causes[1]
    assert {"forward and backward", "tp communication", "optimizer"} <= causes[2]
    for cost in (c.cost() for c in made):
        assert cost.origin == "roofline"
        assert sum(seconds for _, seconds in cost.parts) == pytest.approx(cost.seconds)


def test_chunks_add_up_to_the_node(case) -> None:
    for work in (ROLLOUT, Forward(4096, TAILED)):
        made = case(work, dp=4, chunks=8)
        chunk = made.costs.chunk_seconds(made.node, made.devices, made.settings)
        assert made.seconds == pytest.approx(8 * chunk)


def test_micro_batches_and_optimizer_steps_add_up_to_the_node(case) -> None:
    made = case(TRAIN, dp=4, micro_batch=16, shard="fsdp")
    given = (made.node, made.devices, made.settings)
    accumulate = made.costs.accumulate_seconds(*given, samples=4 * 16)
    step = made.costs.optimizer_step_seconds(*given)
    micro_batches = 1024 * 2 // 8 // (4 * 16)
    assert made.seconds == pytest.approx(8 * (micro_batches * accumulate + step))


def test_a_smaller_last_micro_batch_costs_less(case) -> None:
    even, odd = case(TRAIN, dp=4, micro_batch=32), case(TRAIN, dp=4, micro_batch=48)
    more = case(TRAIN, dp=4, micro_batch=64)
    assert more.seconds <= odd.seconds * 1.1
    assert odd.seconds <= even.seconds * 1.3


def test_chunks_lose_the_efficiency_of_a_large_batch(case) -> None:
    whole, cut = case(ROLLOUT, dp=8, engine="vllm"), case(ROLLOUT, dp=8, engine="vllm", chunks=8)
    assert cut.seconds > 2 * whole.seconds


def test_a_tail_costs_more_than_its_mean(case) -> None:
    tailed = case(ROLLOUT, dp=8, engine="vllm").seconds
    flat = case(Generate(4096, 200, MEAN, 8), dp=8, engine="vllm").seconds
    assert TAILED.mean == MEAN.mean
    assert tailed > 1.5 * flat


def test_a_batch_that_halves_late_costs_more_than_one_that_shrinks(case) -> None:
    paged = dict(case(ROLLOUT, dp=8, engine="vllm").cost().parts)
    held = dict(case(ROLLOUT, dp=8, engine="torch").cost().parts)
    assert held["decode"] > 1.5 * paged["decode"]
    assert held["launch"] > paged["launch"]


def test_the_prompts_of_a_group_are_read_once(case) -> None:
    alone, grouped = (
        dict(case(Generate(512, 4000, MEAN, group), engine="vllm").cost().parts)
        for group in (1, 16)
    )
    assert alone["prefill"] == pytest.approx(16 * grouped["prefill"], rel=0.05)


def test_few_experts_are_read_for_a_small_batch(case) -> None:
    model = "Qwen/Qwen3-30B-A3B"
    one, many = (case(Generate(n, 1, MEAN, 1), model=model, engine="vllm").cost() for n in (1, 512))
    assert dict(one.parts)["decode"] < 0.3 * dict(many.parts)["decode"]


def test_a_pipeline_waits_at_its_ends(case) -> None:
    shallow, deep = (
        dict(case(TRAIN, pp=4, micro_batch=m).cost().parts)["pipeline bubble"] for m in (8, 64)
    )
    assert shallow < deep


def test_sharding_over_slow_networks_is_waited_for(case) -> None:
    fast = case(TRAIN, dp=8, shard="fsdp", micro_batch=8)
    slow = case(TRAIN, cluster="8xL40S", dp=8, shard="fsdp", micro_batch=1)
    waited = [dict(c.cost().parts)["fsdp communication"] / c.seconds for c in (fast, slow)]
    assert waited[0] < 0.05
    assert waited[1] > 0.3


def test_a_node_on_different_devices_is_as_fast_as_the_slowest(case) -> None:
    mixed = load_cluster("8xH20+8xH100")
    work = Forward(4096, MEAN)
    slow, fast = (case(work, cluster=mixed, dp=8, first=first).seconds for first in (0, 8))
    both = case(work, cluster=mixed, dp=16).seconds
    assert fast < slow
    assert both >= slow / 2
    assert both == pytest.approx(slow / 2, rel=0.03)  # an H20's memory is faster than an H100's


def test_a_tiny_model_on_a_core_is_bound_by_its_host(case) -> None:
    work = Generate(4, 16, Lengths.fixed(32, "declared"), 1)
    parts = dict(case(work, cluster="1xcpu", model="Qwen/Qwen2.5-0.5B").cost().parts)
    assert parts["launch"] > 32 * 24 * 200e-6


def test_the_longest_of_several_is_expected() -> None:
    assert expected_longest(TAILED, 1) == pytest.approx(TAILED.mean)
    assert expected_longest(TAILED, 10_000) == pytest.approx(TAILED.longest)


@pytest.mark.parametrize(
    ("work", "settings", "message"),
    [
        (ROLLOUT, {"tp": 8}, "tp 8 does not divide 28 attention heads"),
        (ROLLOUT, {"cp": 2}, "cp 2 for sampling is not supported"),
        (ROLLOUT, {"dp": 2, "shard": "fsdp"}, "weights sharded over replicas"),
        (TRAIN, {"dp": 2, "ep": 2}, "ep 2, but the model has no experts"),
        (TRAIN, {"pp": 32, "cluster": "32xH100"}, "pp 32 is more than 28 layers"),
    ],
)
def test_layouts_that_cannot_run_are_refused(case, work, settings, message: str) -> None:
    made = case(work, **settings)
    assert message in made.costs.refusal(made.node, made.devices, made.settings)
    with pytest.raises(CompileError, match=rf"RG0406.*`n` cannot be laid out so: .*{message}"):
        made.cost()


def test_a_layout_and_its_devices_have_to_agree(case) -> None:
    made = case(TRAIN, dp=4)
    with pytest.raises(CompileError, match="dp 4 takes 4 devices, given 3"):
        made.costs.node(made.node, (0, 1, 2), made.settings)


def test_host_nodes_share_their_samples_among_processes() -> None:
    cluster = load_cluster("8xH100")
    costs, group = CostModel(Graph("g", ()), cluster), cluster.groups[0]
    declared = Node("v", "v", Role.COMPUTE, Unit.SAMPLE, work=HostWork(960, 0.1))
    assert costs.host(declared, 1, group).seconds == pytest.approx(96)
    assert costs.host(declared, 1000, group).seconds == pytest.approx(1)
    assert costs.host(declared, 1, group).origin == "declared"
    plain = Node("v", "v", Role.COMPUTE, Unit.SAMPLE, volume=(Volume(1000, MEAN),))
    assert costs.host(plain, 1, group).seconds == pytest.approx(0.1)
    assert costs.host(plain, 1, group).origin == "declared default"


def test_weights_travel_by_the_slowest_link() -> None:
    costs = CostModel(Graph("g", (), (ModelDef("m", "Qwen/Qwen2.5-7B"),)), load_cluster("16xH100"))
    here = costs.sync("m", [0], [0], "copy").seconds
    inside = costs.sync("m", range(4), range(4, 8), "broadcast").seconds
    between = costs.sync("m", [0], [8], "broadcast").seconds
    assert here < inside < between
    assert between > 15.2e9 / 50e9
