"""Seconds and bytes of tables of operations, by hand and by what must hold of any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlinf_graph.compiler.cost import NodeCost
from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.layout import Hardware, hardware_of
from rlinf_graph.compiler.cost.operations import LAYER_LAUNCHES, chunk
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.operations import Gap, Operation, Operations
from rlinf_graph.ir.plan import NodePlan, Parallel

GPU = CONSTANTS["gpu"]
LAUNCH = GPU.engines["torch"].layer_s / LAYER_LAUNCHES
BANDWIDTH = 3350e9 * GPU.passes.bandwidth
PRODUCTS = 989e12 * GPU.passes.matmul
GAP = Gap("numpy", "head", "reward.py:14", "it reads a tensor's values outside torch")

KINDS = st.sampled_from(
    ["matmul", "attention", "causal attention", "convolution", "element-wise", "sort", "other"]
)
DTYPES = st.sampled_from(["float32", "bfloat16", "float16", "int64", "bool"])
AMOUNTS = st.floats(0, 1e14)
OPERATIONS = st.builds(
    Operation, KINDS, st.just("op"), st.just(((1024, 1024),)), DTYPES, AMOUNTS, AMOUNTS, AMOUNTS,
    st.integers(1, 100),
)  # fmt: skip
TABLES = st.lists(OPERATIONS, min_size=1, max_size=6).map(tuple)
WORKS = st.builds(Operations, st.integers(1, 4096), st.integers(1, 64), TABLES)
CLUSTERS = st.sampled_from(["8xH100", "8xA100", "8xL40S", "8xcpu"])


def hardware(cluster: str = "8xH100", dp: int = 1) -> Hardware:
    return hardware_of(load_cluster(cluster), range(dp), Parallel(dp=dp))


def seconds(work: Operations, cluster: str = "8xH100", dp: int = 1) -> float:
    machine = hardware(cluster, dp)
    settings = NodePlan(parallel=Parallel(dp=dp))
    return sum(chunk(work, settings, machine, CONSTANTS[machine.kind]).values())


def work_of(*table: Operation, samples: int = 8, **fields: object) -> Operations:
    return replace(Operations(samples, 8, table), **fields)


def product(flops: float = 1e13, **fields: object) -> Operation:
    made = Operation("matmul", "aten.mm", ((4096, 4096),), "bfloat16", flops, 1e6, 1e6)
    return replace(made, **fields)


def test_each_operation_takes_what_it_computes_or_moves() -> None:
    moving = product(kind="element-wise", flops=0.0, read=4e9, written=2e9, count=3)
    expected = 1e13 / PRODUCTS + 3 * 6e9 / BANDWIDTH
    assert seconds(work_of(product(), moving)) == pytest.approx(expected)


def test_narrow_products_are_slow() -> None:
    wide = product(shapes=((8192, 4096), (4096, 16384)))
    flat = product(shapes=((8192, 64), (64, 16384)))
    half = GPU.passes.half
    assert seconds(work_of(wide)) == pytest.approx(1e13 / PRODUCTS * (1 + half / 4096))
    assert seconds(work_of(flat)) == pytest.approx(1e13 / PRODUCTS * (1 + half / 64))
    images = ((8, 64, 99, 99), (32, 64, 3, 3), (32,))
    for shapes in (images, ((8, 32, 97, 97), *images[:2])):  # forward, backward
        made = product(kind="convolution", shapes=shapes)
        assert seconds(work_of(made)) == pytest.approx(1e13 / PRODUCTS * (1 + half / 32))


def test_causal_attention_takes_half_and_float32_its_own_peak() -> None:
    whole = seconds(work_of(product(kind="attention")))
    assert seconds(work_of(product(kind="causal attention"))) == pytest.approx(whole / 2)
    slow = seconds(work_of(product(dtype="float32")))
    assert slow == pytest.approx(seconds(work_of(product())) * 989 / 67)


def test_small_operations_wait_for_the_host() -> None:
    tiny = work_of(product(flops=1e3, read=1e3, written=1e3, count=200))
    assert seconds(tiny) == pytest.approx(200 * LAUNCH)
    assert seconds(tiny, "8xcpu") > 200 * CONSTANTS["cpu"].engines["torch"].layer_s / LAYER_LAUNCHES


def test_a_sort_moves_its_keys_several_times() -> None:
    once = product(kind="element-wise", dtype="float32", flops=0.0, read=4e9, written=4e9)
    once = replace(once, shapes=((1_000_000, 1000),))
    sort = replace(once, kind="sort")
    assert seconds(work_of(sort)) == pytest.approx(2 * 1e9 * 12 * 4 / BANDWIDTH)
    assert seconds(work_of(sort)) > 4 * seconds(work_of(once))


def test_the_last_call_has_the_rest_of_the_samples() -> None:
    call = seconds(work_of(product()))
    assert seconds(work_of(product(), samples=20)) == pytest.approx(2.5 * call)


def test_what_is_not_captured_takes_as_long_as_the_rest_of_its_kind() -> None:
    known = seconds(work_of(product(), product(flops=2e13)))
    half = replace(GAP, hidden=2)
    work = work_of(product(), product(flops=2e13), gaps=(half,))
    assert work.known == 0.5
    assert seconds(work) == pytest.approx(2 * known)
    weights = replace(GAP, flops=1e15)
    assert seconds(work_of(product(), weight_dtype="bfloat16", gaps=(weights,))) == pytest.approx(
        seconds(work_of(product())) + 1e15 / PRODUCTS
    )


@given(st.integers(1, 4096), CLUSTERS)
def test_nothing_captured_is_not_nothing(samples: int, cluster: str) -> None:
    work = work_of(samples=samples, gaps=(GAP,))
    assert work.known == 0
    assert seconds(work, cluster) > 0


@given(WORKS, CLUSTERS)
def test_nothing_beats_the_roofline(work: Operations, cluster: str) -> None:
    machine, calls = hardware(cluster), work.samples / work.batch
    peak = max(figure for _dtype, figure in machine.flops)
    flops = sum(o.flops * o.count / (2 if o.kind == "causal attention" else 1) for o in work.table)
    least = max(calls * flops / peak, calls * work.moved / machine.memory_bandwidth)
    assert seconds(work, cluster) >= least * (1 - 1e-9)


@given(WORKS, CLUSTERS, st.sampled_from([2, 4, 8]))
def test_more_devices_and_more_bandwidth_are_never_slower(
    work: Operations, cluster: str, dp: int
) -> None:
    assert seconds(work, cluster, dp) <= seconds(work, cluster) * (1 + 1e-9)
    machine = hardware(cluster)
    faster = replace(machine, memory_bandwidth=2 * machine.memory_bandwidth)
    plan, constants = NodePlan(), CONSTANTS[machine.kind]
    before = sum(chunk(work, plan, machine, constants).values())
    assert sum(chunk(work, plan, faster, constants).values()) <= before * (1 + 1e-9)


def test_memory_is_weights_gradients_and_what_lives(case: Callable[..., object]) -> None:
    work = work_of(product(), samples=64, parameters=4e9, gradients=3e9, live=8e9)
    cost: NodeCost = case(work, dp=2).cost()
    assert dict(cost.resident) == {"weights": 4e9, "gradients": 3e9}
    assert dict(cost.working) == {"activations": 8e9, "buffers": GPU.process}
    few: NodeCost = case(replace(work, samples=8), dp=2).cost()  # four samples on each device
    assert dict(few.working)["activations"] == 4e9
    assert cost.origin == "roofline"
    assert cost.load_s == pytest.approx(4e9 / (64e9 * GPU.iteration.host_link), rel=1e-3)


@pytest.mark.parametrize("axes", [{"tp": 2}, {"pp": 2}, {"dp": 2, "shard": "fsdp"}])
def test_what_is_traced_is_replicated_only(
    case: Callable[..., object], axes: dict[str, object]
) -> None:
    with pytest.raises(CompileError, match="can only be replicated") as raised:
        case(work_of(product()), **axes).cost()
    assert raised.value.diagnostics[0].code == "RG0406"
