"""What must hold of memory for any model, work and layout."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rlinf_graph.compiler.cost.memory import in_flight
from rlinf_graph.ir.work import Forward, Lengths, Train

MODELS = st.sampled_from(
    ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3"]
)
ENGINES = st.sampled_from(["torch", "megatron"])
RECOMPUTE = st.sampled_from([False, "selective", True])
LENGTHS = st.lists(st.floats(1, 8000), min_size=1, max_size=12).map(
    lambda q: Lengths(tuple(q), "declared")
)
SAMPLES = st.integers(1, 64).map(lambda n: 64 * n)
TRAIN = st.builds(Train, SAMPLES, LENGTHS, st.integers(1, 2), st.sampled_from([1, 4]))
WORK = st.one_of(st.builds(Forward, SAMPLES, LENGTHS), TRAIN)
DEGREE = st.sampled_from([1, 2, 4])
MICRO = st.sampled_from([1, 2, 8])
SLACK = 1 + 1e-9

many = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def never_grows(sizes: list[float]) -> bool:
    return all(later <= earlier * SLACK for earlier, later in pairwise(sizes))


@many
@given(
    work=TRAIN,
    model=MODELS,
    engine=ENGINES,
    recompute=RECOMPUTE,
    tp=st.sampled_from([1, 2]),
    pp=st.sampled_from([1, 4]),
    shard=st.sampled_from(["fsdp", "optimizer"]),
)
def test_states_shared_over_more_devices_never_need_more_of_each(
    case, work, model, engine, recompute, tp, pp, shard
) -> None:
    """One replica is compared with more where no pipeline keeps gathered weights meanwhile."""
    given = {"model": model, "engine": engine, "recompute": recompute, "tp": tp, "pp": pp}
    sizes = [
        case(work, cluster="1024xH100", dp=dp, shard=shard, micro_batch=1, **given).memory
        for dp in (1, 2, 4, 8, 16, 64)
    ]
    assert never_grows(sizes if pp == 1 else sizes[1:])


@many
@given(work=WORK, model=MODELS, engine=ENGINES, recompute=RECOMPUTE, dp=DEGREE, micro=MICRO)
def test_more_tensor_ranks_never_need_more_of_each(
    case, work, model, engine, recompute, dp, micro
) -> None:
    given = {"model": model, "engine": engine, "recompute": recompute, "micro_batch": micro}
    ranks = (1, 2) if "0.5B" in model else (1, 2, 4)
    sizes = [
        case(work, cluster="64xH100", dp=dp, tp=tp, shard="fsdp", **given).memory for tp in ranks
    ]
    assert never_grows(sizes)


@many
@given(work=TRAIN, model=MODELS, engine=ENGINES, tp=st.sampled_from([1, 2]), pp=DEGREE, micro=MICRO)
def test_what_is_recomputed_is_not_kept(case, work, model, engine, tp, pp, micro) -> None:
    given = {"model": model, "engine": engine, "tp": tp, "pp": pp, "micro_batch": micro}
    sizes = [case(work, recompute=mode, **given).memory for mode in (False, "selective", True)]
    assert never_grows(sizes)


@many
@given(
    work=WORK,
    model=MODELS,
    engine=ENGINES,
    recompute=RECOMPUTE,
    micro=MICRO,
    factor=st.floats(1, 10),
)
def test_longer_sequences_and_larger_micro_batches_never_need_less(
    case, work, model, engine, recompute, micro, factor
) -> None:
    given = {"model": model, "engine": engine, "recompute": recompute}
    longer = replace(
        work, lengths=Lengths(tuple(q * factor for q in work.lengths.quantiles), "declared")
    )
    sizes = [
        case(made, micro_batch=batch, **given).memory
        for made, batch in ((longer, 2 * micro), (longer, micro), (work, micro))
    ]
    assert never_grows(sizes)


@many
@given(
    work=WORK,
    model=MODELS,
    engine=ENGINES,
    recompute=RECOMPUTE,
    cp=st.sampled_from([1, 2]),
    pp=DEGREE,
    vp=st.sampled_from([1, 2]),
    shard=st.sampled_from(["none", "optimizer", "fsdp"]),
)
def test_no_part_is_negative(case, work, model, engine, recompute, cp, pp, vp, shard) -> None:
    assume(not (cp > 1 and "DeepSeek" in model))
    given = {"cp": cp, "pp": pp, "vp": vp, "shard": shard, "recompute": recompute}
    cost = case(work, model=model, engine=engine, dp=2, cluster="64xH100", **given).cost()
    names = [name for name, _size in cost.resident + cost.working]
    assert all(size > 0 for _name, size in cost.resident + cost.working)
    assert {"weights", "activations", "workspace"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("pp", "vp", "calls", "kept"),
    [(1, 1, 8, 1), (4, 1, 8, 4), (4, 1, 2, 2), (4, 2, 64, 5.5), (8, 4, 64, 9.75)],
)
def test_micro_batches_in_flight(pp: int, vp: int, calls: int, kept: float) -> None:
    """Korthikanti et al. 2022, section 4.2.3: interleaved, p (1 + (p - 1) / (p v))."""
    assert in_flight(pp, vp, calls) == kept
