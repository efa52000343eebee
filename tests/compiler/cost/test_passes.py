"""Passes by class of operator: what must hold whatever the constants are, and published rows."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.execution import PLAIN, Execution
from rlinf_graph.compiler.cost.fitted import parameters
from rlinf_graph.compiler.cost.iteration_constants import ALONE
from rlinf_graph.compiler.cost.layout import Layout, hardware_of
from rlinf_graph.compiler.cost.lookup import known_models
from rlinf_graph.compiler.cost.packed import Packed
from rlinf_graph.compiler.cost.passes import (
    FORWARD,
    RECOMPUTED,
    SELECTIVE,
    TRAINING,
    Kind,
    bubble_of,
    pass_parts,
)
from rlinf_graph.ir.cluster import Cluster, Link
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.plan import NodePlan, Parallel

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ONE = Parallel()
DENSE = "meta-llama/Llama-3.1-8B"
MODELS = st.sampled_from(
    [
        DENSE,
        "openai/gpt-oss-120b",
        "deepseek-ai/DeepSeek-V3",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    ]
)
FORMATS = st.sampled_from(["", "float8", "mxfp8", "nvfp4"])
DISPATCH = st.sampled_from(["copies", "once", "fused"])
EXECUTIONS = st.builds(
    Execution,
    FORMATS,
    graphs=st.sampled_from([0.0, 0.5, 1.0]),
    fused=st.booleans(),
    fused_experts=st.booleans(),
    dispatch=DISPATCH,
    tensor_beside=st.booleans(),
    experts_beside=st.booleans(),
)
PARALLELS = st.builds(
    Parallel,
    dp=st.sampled_from([8, 16]),
    tp=st.sampled_from([1, 4]),
    pp=st.sampled_from([1, 4]),
    ep=st.sampled_from([1, 8]),
    vp=st.sampled_from([1, 2]),
    shard=st.sampled_from(["none", "optimizer", "fsdp"]),
)
CLUSTERS = st.sampled_from(["256xH100", "256xB300", "256xGB200", "256xH100-96GB"])
KINDS = st.sampled_from([FORWARD, TRAINING, SELECTIVE, RECOMPUTED])
SAMPLES = st.integers(1, 8)
LENGTH = st.sampled_from([64.0, 1024.0, 8192.0, 65536.0])
many = settings(max_examples=150, deadline=None)


def layout_of(
    model: str,
    parallel: Parallel = ONE,
    cluster: str | Cluster = "256xH100",
    execution: Execution = PLAIN,
) -> Layout:
    built = load_cluster(cluster) if isinstance(cluster, str) else cluster
    shape = known_models()[model]
    assume(shape.experts or parallel.ep == 1)
    hardware = hardware_of(built, range(parallel.devices), parallel)
    plan = NodePlan(parallel=parallel, engine="megatron")
    return Layout(shape, "lm", "bfloat16", hardware, plan, CONSTANTS["gpu"], execution)


def batch_of(samples: int, length: float) -> Packed:
    tokens = samples * length
    return Packed(samples, tokens, tokens * length, tokens)


def seconds_of(layout: Layout, batch: Packed, kind: Kind, calls: int = 8) -> float:
    bubble = bubble_of(layout.parallel.pp, calls, layout.parallel.vp)
    return sum(pass_parts(layout, batch, kind, bubble).values())


def faster(cluster: Cluster, flops: float, memory: float, links: float, power: float) -> Cluster:
    def wide(link: Link) -> Link:
        return Link(link.bandwidth * links, link.latency / links)

    return replace(
        cluster,
        groups=tuple(
            replace(
                group,
                inside=wide(group.inside),
                between=wide(group.between),
                device=replace(
                    group.device,
                    flops=tuple((name, rate * flops) for name, rate in group.device.flops),
                    memory_bandwidth=group.device.memory_bandwidth * memory,
                    power=group.device.power * power,
                ),
            )
            for group in cluster.groups
        ),
    )


@many
@given(
    MODELS,
    PARALLELS,
    CLUSTERS,
    EXECUTIONS,
    KINDS,
    SAMPLES,
    LENGTH,
    st.lists(st.floats(1, 10), min_size=4, max_size=4),
)
def test_better_hardware_is_never_slower(
    model: str,
    parallel: Parallel,
    cluster: str,
    execution: Execution,
    kind: Kind,
    samples: int,
    length: float,
    better: list[float],
) -> None:
    plain, batch = load_cluster(cluster), batch_of(samples, length)
    before = seconds_of(layout_of(model, parallel, plain, execution), batch, kind)
    changed = faster(plain, *better)
    after = seconds_of(layout_of(model, parallel, changed, execution), batch, kind)
    assert after <= before * (1 + 1e-9)


@many
@given(MODELS, PARALLELS, CLUSTERS, EXECUTIONS, KINDS, SAMPLES, LENGTH)
def test_nothing_beats_the_roofline_of_its_format(
    model: str,
    parallel: Parallel,
    cluster: str,
    execution: Execution,
    kind: Kind,
    samples: int,
    length: float,
) -> None:
    layout, batch = layout_of(model, parallel, cluster, execution), batch_of(samples, length)
    device, shape = load_cluster(cluster).groups[0].device, layout.shape
    peak = device.peak(execution.product_format or "bfloat16")
    if execution.product_format not in dict(device.flops):
        peak = device.peak("bfloat16")
    ranks = parallel.tp * parallel.pp
    seconds = seconds_of(layout, batch, kind)
    operations = 2.0 * shape.active_matrices * batch.tokens / ranks
    assert seconds >= kind.compute * operations / peak
    assert seconds >= kind.compute * layout.replica_weights * 2 / device.memory_bandwidth


@many
@given(SAMPLES, LENGTH, CLUSTERS)
def test_one_device_is_the_plain_formula(samples: int, length: float, cluster: str) -> None:
    """Written out: products, head, attention and element-wise work of Llama-3.1-8B in bfloat16."""
    tokens = samples * length
    assume(tokens >= 1024)
    device, known = load_cluster(cluster).groups[0].device, CONSTANTS["gpu"].passes
    peak = dict(device.flops)["bfloat16"]
    power = min(1.0, device.power / peak / (700 / 989e12)) ** known.power
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    small = min(tokens, 4096)
    products = 2 * tokens * (32 * layer * (1 + known.half / small) + 128256 * 4096) / known.matmul
    attention = 2 * 32 * 4096 * tokens * length / known.attention
    moved = 32 * 2 * (5 * 4096 + 2 * (4096 + 2048) + 5 * 4096 + 3 * 14336) + 10 * 128256
    seconds = (3 * products + 3.5 * attention) / (peak * power)
    seconds += 3 * known.traffic * tokens * moved / (known.bandwidth * device.memory_bandwidth)
    layout = layout_of(DENSE, cluster=cluster)
    alone = replace(layout, constants=replace(layout.constants, iteration=ALONE))
    found = pass_parts(alone, batch_of(samples, length), TRAINING, 0.0)
    assert set(found) == {"forward and backward", "launch"}
    assert found["forward and backward"] == pytest.approx(seconds)
    assert found["launch"] == pytest.approx(max(0.0, alone.host * 3 * 32 * 400e-6 - seconds))


@many
@given(st.sampled_from([2, 4, 8]), st.sampled_from([2, 4]), st.integers(1, 64), SAMPLES, LENGTH)
def test_interleaving_is_never_slower_over_ideal_links(
    pp: int, vp: int, calls: int, samples: int, length: float
) -> None:
    """It sends more messages, which cost nothing here, and waits less at the pipeline's ends."""
    ideal = faster(load_cluster("256xH100"), 1, 1, 1e12, 1)
    plain, interleaved = (
        seconds_of(
            layout_of(DENSE, Parallel(pp=pp, vp=v), ideal),
            batch_of(samples, length),
            TRAINING,
            calls,
        )
        for v in (1, vp)
    )
    assert interleaved <= plain * (1 + 1e-9)


@many
@given(MODELS, PARALLELS, EXECUTIONS, SAMPLES, LENGTH)
def test_full_recomputation_is_a_third_of_work_and_half_of_messages(
    model: str, parallel: Parallel, execution: Execution, samples: int, length: float
) -> None:
    layout, batch = layout_of(model, parallel, execution=execution), batch_of(samples, length)
    none, selective, full = (
        pass_parts(layout, batch, kind, 0.0) for kind in (TRAINING, SELECTIVE, RECOMPUTED)
    )
    sent = sum(seconds for cause, seconds in none.items() if cause.endswith("communication"))
    assert sum(none.values()) <= sum(selective.values()) * (1 + 1e-9)
    assert sum(none.values()) <= sum(full.values()) * (1 + 1e-9)
    assert sum(full.values()) <= (4 / 3 * sum(none.values()) + sent / 2) * (1 + 1e-9)


@given(MODELS, SAMPLES, LENGTH, st.sampled_from(["float8", "mxfp8"]))
@many
def test_graphs_and_fusion_never_cost_anything(
    model: str, samples: int, length: float, product: str
) -> None:
    parallel = Parallel(dp=8, ep=8 if known_models()[model].experts else 1)
    batch, plain = batch_of(samples, length), Execution(product, fused=False, dispatch="copies")
    better: list[dict[str, Any]] = [
        {"fused": True},
        {"fused_experts": True},
        {"dispatch": "once"},
        {"dispatch": "fused"},
        {"graphs": 0.5},
        {"graphs": 1.0},
        {"experts_beside": True},
    ]
    before = seconds_of(layout_of(model, parallel, execution=plain), batch, TRAINING)
    for change in better:
        changed = layout_of(model, parallel, execution=replace(plain, **change))
        assert seconds_of(changed, batch, TRAINING) <= before * (1 + 1e-9)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's own module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from validation import training

    return training


def test_published_training(training: ModuleType) -> None:
    """Shipped constants are those of a fit to all rows, which they are near to."""
    from validation.fitting import fit, predict_all
    from validation.rows import DATA, read_rows

    cases, left_out = training.cases(read_rows(DATA / "published_training.csv"))
    assert (len(cases), len(left_out)) == (222, 33)
    errors = [abs(p.error) for p in predict_all(training.predict, cases, training.KIND.shipped)]
    assert np.median(errors) < 0.09
    assert np.quantile(errors, 0.9) < 0.2
    again = fit(training.predict, cases, training.KIND.shipped)
    for shipped, fitted in zip(parameters(training.KIND.shipped), parameters(again), strict=True):
        assert fitted.value == pytest.approx(shipped.value, rel=0.03), shipped.name
