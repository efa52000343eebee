from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rlinf_graph.compiler.cost.rollout import Rollout
from rlinf_graph.compiler.cost.served import FORMATS, made_in
from rlinf_graph.compiler.cost.steps import Load, Steps
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.work import Generate, Lengths, Speculative

FIXED = Lengths.fixed(1000, "declared")
TAILED = Lengths((*[500.0] * 9, 5500.0), "declared")
MODELS = st.sampled_from(["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-30B-A3B"])
CLUSTERS = st.sampled_from(["8xH100", "8xGB200", "8xL40S", "8xcpu"])
ENGINES = st.sampled_from(["torch", "vllm", "trtllm", "megatron-dynamic"])

many = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@many
@given(
    drafted=st.integers(1, 8),
    acceptance=st.floats(0, 1),
    samples=st.integers(1, 2000),
    model=MODELS,
    cluster=CLUSTERS,
    engine=ENGINES,
)
def test_more_accepted_tokens_are_never_slower(
    case, drafted, acceptance, samples, model, cluster, engine
) -> None:
    def seconds(speculative: Speculative | None) -> float:
        work = Generate(samples, 100, FIXED, 1, speculative)
        return case(work, model=model, cluster=cluster, engine=engine).seconds

    none = seconds(Speculative(drafted, 0.0))
    assert seconds(Speculative(drafted, acceptance)) <= none * (1 + 1e-9)
    assert seconds(None) <= none * (1 + 1e-9)


@pytest.mark.parametrize(("drafted", "acceptance"), [(1, 0.5), (4, 0.8), (3, 1.0), (5, 0.0)])
def test_tokens_of_a_speculative_step_are_those_of_its_first_rejection(drafted, acceptance) -> None:
    run = sum(n * acceptance ** (n - 1) * (1 - acceptance) for n in range(1, drafted + 1))
    expected = run + (drafted + 1) * acceptance**drafted
    assert Speculative(drafted, acceptance).kept == pytest.approx(expected)


def test_speculation_pays_where_a_batch_is_small(case) -> None:
    def gain(samples: int) -> float:
        plain, drafted = (
            case(Generate(samples, 100, FIXED, 1, s), engine="vllm").seconds
            for s in (None, Speculative(4, 0.8))
        )
        return plain / drafted

    assert gain(1) > 2
    assert gain(1) > gain(512) > 0.3
    parts = dict(case(Generate(1, 100, FIXED, 1, Speculative(4, 0.8)), engine="vllm").cost().parts)
    steps = parts["decode"] + parts["launch"]
    assert parts["draft"] == pytest.approx(4 * 0.05 * steps)


@many
@given(
    low=st.floats(1, 500),
    more=st.floats(1, 4000),
    samples=st.integers(1, 200),
    model=MODELS,
    engine=ENGINES,
)
def test_a_heavier_tail_of_one_mean_is_never_faster_to_drain(
    case, low, more, samples, model, engine
) -> None:
    """Nine of ten responses give up what the tenth gains."""
    light = Lengths((*[low + more / 9] * 9, low + more), "declared")
    heavy = Lengths((*[low] * 9, low + 2 * more), "declared")
    assert light.mean == pytest.approx(heavy.mean)
    made = [
        case(Generate(samples, 50, tail), model=model, engine=engine) for tail in (light, heavy)
    ]
    assume(all(samples <= _slots(one) for one in made))
    assert made[1].seconds >= made[0].seconds * (1 - 1e-9)


def _slots(made) -> int:
    layout = made.costs._layout(made.node, made.devices, made.settings)
    return Rollout(layout, made.node.work).slots


def test_the_tail_is_not_waited_for_where_a_batch_is_cut(case) -> None:
    whole, cut = (
        case(Generate(256, 200, TAILED, 1, None, finish), engine="vllm").seconds
        for finish in (1.0, 0.9)
    )
    assert cut < 0.7 * whole
    same = case(Generate(256, 200, FIXED, 1, None, 1.0), engine="vllm").seconds
    assert case(Generate(256, 200, FIXED), engine="vllm").seconds == same


def test_what_is_carried_over_is_decoded_and_its_tokens_are_read_again(case) -> None:
    made = [case(Generate(256, 200, TAILED, 1, None, f), engine="vllm").cost() for f in (1.0, 0.9)]
    whole, cut = (dict(cost.parts) for cost in made)
    assert cut["prefill"] > whole["prefill"]
    per_token = cut["decode"] / (256 * TAILED.mean)
    full = dict(case(Generate(256, 200, FIXED), engine="vllm").cost().parts)["decode"]
    assert per_token == pytest.approx(full / (256 * 1000), rel=0.5)


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_the_prompts_of_a_group_are_read_once_however_often_places_are_refilled(
    case, engine: str
) -> None:
    """37 responses for each of 11 prompts in 3 places: no number of batches comes out even."""

    def prefill(group: int) -> float:
        work = Generate(407, 8000, Lengths.fixed(50, "declared"), group)
        return dict(case(work, engine=engine, micro_batch=3).cost().parts)["prefill"]

    assert prefill(37) < 0.05 * prefill(1)


def test_responses_of_one_length_end_together(case) -> None:
    """One response more than there are places takes as long as a second batch would."""
    fitting, over = (
        case(Generate(samples, 10, FIXED), engine="vllm", micro_batch=64).seconds
        for samples in (64, 65)
    )
    assert over > 1.4 * fitting


@many
@given(samples=st.integers(1, 3000), prompt=st.floats(1, 4000), model=MODELS, engine=ENGINES)
def test_more_prompts_are_never_faster(case, samples, prompt, model, engine) -> None:
    one, other = (
        case(Generate(n, prompt, FIXED), model=model, engine=engine, micro_batch=64).seconds
        for n in (samples, 2 * samples)
    )
    assert one <= other * (1 + 1e-9)


def test_grace_processors_decide_where_the_host_does(case) -> None:
    short = Generate(4096, 128, Lengths.fixed(128, "declared"))
    long = Generate(64, 128, Lengths.fixed(2000, "declared"))
    for work, slower in ((short, True), (long, False)):
        b200, gb200 = (
            case(work, cluster=c, engine="trtllm", model="Qwen/Qwen3-30B-A3B").seconds
            for c in ("1xB200", "1xGB200")
        )
        assert (gb200 > 1.1 * b200) == slower


def _steps(case, formats: str, cluster: str = "8xB200", model: str = "openai/gpt-oss-20b") -> Steps:
    made = case(Generate(64, 100, FIXED), cluster=cluster, model=model, engine="vllm")
    layout = made.costs._layout(made.node, made.devices, made.settings)
    return Steps(layout, FORMATS[formats], 100.0)


def test_weights_of_experts_alone_are_in_four_bits(case) -> None:
    wide, narrow = (_steps(case, name).held_bytes for name in ("bfloat16", "mxfp4"))
    shape = _steps(case, "mxfp4").layout.shape
    assert wide == pytest.approx(2 * shape.parameters(), rel=1e-6)
    assert wide - narrow == pytest.approx((2 - 0.53125) * shape.expert_matrices, rel=0.001)


def test_devices_without_units_for_a_format_widen_it(case) -> None:
    h100 = load_cluster("1xH100").groups[0].device.flops
    b200 = load_cluster("1xB200").groups[0].device.flops
    assert made_in(h100, "float4") == ("bfloat16", 989e12)
    assert made_in(b200, "float4") == ("float4", 9000e12)
    assert made_in(load_cluster("1xA100").groups[0].device.flops, "float8")[0] == "bfloat16"


def test_small_reads_do_not_reach_the_bandwidth(case) -> None:
    steps = _steps(case, "bfloat16", "8xH100", "Qwen/Qwen2.5-0.5B")
    one = np.ones(1)
    busy = steps.seconds(Load(one, one * 100, one * 0)).busy[0]
    read = 2 * steps.layout.shape.parameters() / 3350e9
    assert busy > 3 * read
    known = steps.layout.constants
    plain = replace(known.decoding, floor=0.0, rows=0.0, moves=0.0)
    constants = replace(known, decoding=plain)
    ideal = replace(steps, layout=replace(steps.layout, constants=constants))
    assert read < ideal.seconds(Load(one, one * 100, one * 0)).busy[0] < 1.3 * read
