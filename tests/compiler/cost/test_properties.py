from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rlinf_graph.ir.cluster import Cluster, Link
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.work import Forward, Generate, Lengths, Train

MODELS = st.sampled_from(["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-30B-A3B"])
CLUSTERS = st.sampled_from(["8xH100", "16xA100", "8xL40S", "8xH20", "8xcpu"])
ENGINES = st.sampled_from(["torch", "vllm"])
LENGTHS = st.lists(st.floats(1, 8000), min_size=1, max_size=12).map(
    lambda q: Lengths(tuple(q), "declared")
)
SAMPLES = st.integers(1, 64).map(lambda n: 64 * n)
GENERATE = st.builds(Generate, SAMPLES, st.floats(1, 2000), LENGTHS, st.sampled_from([1, 8]))
FORWARD = st.builds(Forward, SAMPLES, LENGTHS)
TRAIN = st.builds(Train, SAMPLES, LENGTHS, st.integers(1, 2), st.sampled_from([1, 4]))
WORK = st.one_of(GENERATE, FORWARD, TRAIN)
DP = st.sampled_from([1, 2, 4, 8])
TP = st.sampled_from([1, 2])
SHARD = st.sampled_from(["none", "fsdp"])

many = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def layout(work, dp: int, tp: int, shard: str) -> dict[str, object]:
    """Settings that are legal for the work on eight devices."""
    assume(dp * tp <= 8)
    if isinstance(work, Generate):
        return {"dp": dp, "tp": tp}
    return {"dp": dp, "tp": tp, "shard": shard, "micro_batch": 8}


def faster(cluster: Cluster, links: float = 1, memory: float = 1) -> Cluster:
    """The same cluster with wider links and memory."""

    def wide(link: Link) -> Link:
        return Link(link.bandwidth * links, link.latency)

    groups = [
        replace(
            g,
            inside=wide(g.inside),
            between=wide(g.between),
            device=replace(
                g.device,
                host_link=wide(g.device.host_link),
                memory_bandwidth=g.device.memory_bandwidth * memory,
            ),
        )
        for g in cluster.groups
    ]
    return replace(cluster, groups=tuple(groups))


@many
@given(
    work=WORK,
    cluster=CLUSTERS,
    model=MODELS,
    engine=ENGINES,
    dp=DP,
    tp=TP,
    shard=SHARD,
    links=st.floats(1, 10),
    memory=st.floats(1, 10),
)
def test_more_bandwidth_is_never_slower(
    case, work, cluster, model, engine, dp, tp, shard, links, memory
) -> None:
    given = {"model": model, "engine": engine} | layout(work, dp, tp, shard)
    plain = load_cluster(cluster)
    before = case(work, cluster=plain, **given).cost()
    after = case(work, cluster=faster(plain, links, memory), **given).cost()
    assert after.seconds <= before.seconds * (1 + 1e-9)
    assert after.load_s <= before.load_s


@many
@given(work=WORK, cluster=CLUSTERS, model=MODELS, engine=ENGINES, dp=DP, tp=TP, shard=SHARD)
def test_nothing_beats_the_roofline(case, work, cluster, model, engine, dp, tp, shard) -> None:
    made = case(work, cluster=cluster, model=model, engine=engine, **layout(work, dp, tp, shard))
    device = load_cluster(cluster).groups[0].device
    dtype = "float32" if device.kind == "cpu" else "bfloat16"
    shape = made.costs.shapes["m"]
    lengths = work.response if isinstance(work, Generate) else work.lengths
    passes = 3 * work.epochs if isinstance(work, Train) else 1
    tokens = passes * work.samples * lengths.mean
    operations = 2 * shape.active_matrices * tokens
    assert made.seconds >= operations / (dp * tp * device.peak(dtype))
    if isinstance(work, Generate):
        read = 2 * shape.dense_matrices / tp
        shortest = min(lengths.quantiles)
        assert made.seconds >= shortest * read / device.memory_bandwidth


@many
@given(work=st.one_of(GENERATE, FORWARD), cluster=CLUSTERS, model=MODELS, engine=ENGINES)
def test_more_replicas_are_never_slower(case, work, cluster, model, engine) -> None:
    seconds = [
        case(work, cluster=cluster, model=model, engine=engine, dp=dp).seconds
        for dp in (1, 2, 4, 8)
    ]
    for fewer, more in pairwise(seconds):
        assert more <= fewer * (1 + 1e-9)


@many
@given(lengths=LENGTHS, shard=SHARD)
def test_more_replicas_train_a_large_batch_faster(case, lengths: Lengths, shard: str) -> None:
    """Where the batch is large enough for every replica; a small one may be all communication."""
    assume(lengths.mean > 100)
    work = Train(2048, lengths, 1, 1)
    seconds = [case(work, dp=dp, shard=shard, micro_batch=8).seconds for dp in (1, 2, 4, 8)]
    assert seconds == sorted(seconds, reverse=True)


@many
@given(work=st.one_of(FORWARD, TRAIN), model=MODELS, cluster=st.sampled_from(["16xH100", "16xcpu"]))
def test_sharding_over_more_devices_never_needs_more_memory(case, work, model, cluster) -> None:
    needs = [
        case(work, cluster=cluster, model=model, dp=dp, shard="fsdp", micro_batch=1).memory
        for dp in (2, 4, 8, 16)
    ]
    assert needs == sorted(needs, reverse=True)


@many
@given(
    length=st.integers(1, 5000),
    count=st.integers(2, 20),
    engine=ENGINES,
    work=st.sampled_from([Generate, Forward, Train]),
)
def test_a_distribution_without_width_is_a_fixed_length(case, length, count, engine, work) -> None:
    costs = []
    for lengths in (Lengths.fixed(length, "declared"), Lengths((float(length),) * count, "x")):
        rest = {Generate: (100, lengths, 8), Forward: (lengths,), Train: (lengths, 1, 4)}[work]
        costs.append(case(work(512, *rest), engine=engine, dp=8, micro_batch=None).cost())
    fixed, spread = costs
    assert spread.seconds == pytest.approx(fixed.seconds)
    for kind in ("resident", "working"):
        assert dict(getattr(spread, kind)) == pytest.approx(dict(getattr(fixed, kind)))


@many
@given(work=GENERATE, model=MODELS, chunks=st.sampled_from([2, 4, 8]))
def test_chunks_never_save_time(case, work, model, chunks) -> None:
    whole = case(work, model=model, engine="vllm", dp=8)
    cut = case(work, model=model, engine="vllm", dp=8, chunks=chunks)
    assume(dict(whole.cost().parts).get("decode", 0) > 0)
    assert cut.seconds >= whole.seconds * (1 - 1e-9)


@many
@given(work=GENERATE, kept=st.floats(0, 60e9), more=st.floats(0, 10e9))
def test_a_smaller_cache_is_never_faster(case, work, kept, more) -> None:
    made = case(work, engine="vllm")
    assert made.cost(kept + more).seconds >= made.cost(kept).seconds * (1 - 1e-9)


@many
@given(work=WORK, model=MODELS, engine=ENGINES, dp=DP, tp=TP, shard=SHARD)
def test_costs_are_finite_and_parts_add_up(case, work, model, engine, dp, tp, shard) -> None:
    cost = case(work, model=model, engine=engine, **layout(work, dp, tp, shard)).cost()
    assert 0 < cost.seconds < float("inf")
    assert sum(s for _, s in cost.parts) == pytest.approx(cost.seconds)
    for items in (cost.parts, cost.resident, cost.working):
        assert all(value > 0 for _, value in items)
        assert len({name for name, _ in items}) == len(items)
