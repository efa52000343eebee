import pytest

from rlinf_graph.compiler.cost.memory import peak_tokens
from rlinf_graph.ir.work import Forward, Generate, Lengths, Train

SHORT = Lengths((200.0, 400.0, 800.0, 2000.0), "declared")
TRAIN = Train(1024, SHORT, 1, 2)
CARD = 80e9


def gigabytes(items: tuple[tuple[str, float], ...]) -> dict[str, float]:
    return {name: round(size / 1e9, 1) for name, size in items}


def test_states_of_a_trained_model_by_name(case) -> None:
    """32.8B over 8 devices: 2, 4 and 12 bytes a weight."""
    train = case(TRAIN, model="Qwen/Qwen2.5-32B", dp=8, shard="fsdp", micro_batch=1)
    assert gigabytes(train.cost().resident) == {
        "weights": 8.2,
        "gradients": 16.4,
        "optimizer and master": 49.1,
    }


def test_a_7b_model_trains_on_eight_devices_and_not_on_one(case) -> None:
    assert case(TRAIN, micro_batch=1, recompute=True).memory > 1.5 * CARD
    assert case(TRAIN, dp=8, shard="none", micro_batch=1, recompute=True).memory > 1.5 * CARD
    fitting = case(TRAIN, dp=8, shard="fsdp", micro_batch=4, recompute=True)
    assert 0.3 * CARD < fitting.memory < CARD


def test_states_do_not_depend_on_how_many_run_but_activations_do(case) -> None:
    one, four = (case(TRAIN, dp=8, shard="fsdp", micro_batch=n).cost() for n in (1, 4))
    assert one.resident == four.resident
    assert dict(one.working)["activations"] < dict(four.working)["activations"]


def test_recomputation_saves_activations_for_time(case) -> None:
    kept, again = (
        case(TRAIN, dp=8, shard="fsdp", micro_batch=4, recompute=r) for r in (False, True)
    )
    assert (
        dict(again.cost().working)["activations"] < 0.3 * dict(kept.cost().working)["activations"]
    )
    assert again.seconds == pytest.approx(kept.seconds * 4 / 3, rel=0.1)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_bytes_follow_the_number_format(case, dtype: str) -> None:
    each = {"float64": 32, "float32": 16, "bfloat16": 18}[dtype]
    train = case(TRAIN, model="Qwen/Qwen2.5-0.5B", dtype=dtype, micro_batch=1)
    assert sum(size for _, size in train.cost().resident) == each * 494_032_768


def test_processors_hold_float32_and_gpus_bfloat16(case) -> None:
    for cluster, size in (("2xcpu", 4), ("2xH100", 2)):
        work = Forward(8, SHORT)
        forward = case(work, cluster=cluster, model="Qwen/Qwen2.5-0.5B")
        assert dict(forward.cost().resident) == {"weights": size * 494_032_768}


def test_a_value_head_has_no_logits(case) -> None:
    parts = dict(case(Forward(8, SHORT), head="value").cost().working)
    assert "logits" not in parts
    assert "logits" in dict(case(Forward(8, SHORT)).cost().working)


def test_a_paged_cache_takes_what_is_left(case) -> None:
    work = Generate(8192, 200, Lengths.fixed(4000, "declared"), 8)
    shared = {"cluster": "8xH100", "dp": 8, "engine": "vllm"}
    alone, beside = (case(work, **shared).cost(kept=kept) for kept in (0.0, 20e9))
    assert 0.85 * CARD < sum(b for _, b in alone.resident + alone.working) < 0.95 * CARD
    assert sum(b for _, b in beside.resident + beside.working) < 0.95 * CARD - 20e9
    assert alone.seconds < beside.seconds


def test_a_cache_that_is_not_paged_shows_all_it_needs(case) -> None:
    work = Generate(8192, 200, Lengths.fixed(4000, "declared"), 8)
    whole, cut = (case(work, dp=8, chunks=chunks).cost() for chunks in (1, 16))
    shape_bytes = 28 * 2 * 4 * 128 * 2
    assert dict(whole.working)["kv cache"] == 1024 * 4200 * shape_bytes
    assert dict(cut.working)["kv cache"] == 64 * 4200 * shape_bytes


def test_a_cache_holds_at_least_one_longest_sequence(case) -> None:
    work = Generate(64, 100_000, Lengths.fixed(1_900_000, "declared"), 1)
    assert case(work, engine="vllm").memory > CARD


def test_tensor_parallel_ranks_share_all_states(case) -> None:
    one, two = (case(TRAIN, tp=tp, micro_batch=1) for tp in (1, 2))
    for (name, whole), (_, half) in zip(one.cost().resident, two.cost().resident, strict=True):
        assert half == whole / 2, name
    assert two.memory < one.memory


def test_pipeline_stages_and_expert_ranks_divide_weights(case) -> None:
    model = "Qwen/Qwen3-30B-A3B"
    one = case(TRAIN, model=model, micro_batch=1).cost()
    staged = case(TRAIN, model=model, pp=4, micro_batch=1).cost()
    spread = case(TRAIN, model=model, dp=8, ep=8, micro_batch=1).cost()
    weights = [dict(c.resident)["weights"] for c in (one, staged, spread)]
    assert weights[1] == pytest.approx(weights[0] / 4, rel=0.05)
    assert weights[2] == pytest.approx(weights[0] / 8 + 2 * 1.54e9 * 7 / 8, rel=0.1)


def test_loading_takes_what_stays_but_gradients(case) -> None:
    cost = case(TRAIN, dp=8, shard="fsdp", micro_batch=1).cost()
    moved = sum(size for name, size in cost.resident if name != "gradients")
    assert cost.load_s == cost.offload_s == pytest.approx(moved / (0.4 * 64e9), rel=0.01)


def test_the_longest_micro_batch_is_counted_on() -> None:
    assert peak_tokens(1, SHORT) == 2000
    assert peak_tokens(100, Lengths.fixed(50, "declared")) == 5000
    assert 1000 * SHORT.mean < peak_tokens(1000, SHORT) < 1.1 * 1000 * SHORT.mean


def test_data_ranks_share_the_optimizers_states_alone(case) -> None:
    """ZeRO-1, as Megatron's distributed optimizer: 6 bytes of a weight stay whole."""
    shared = {"model": "Qwen/Qwen2.5-32B", "dp": 8, "micro_batch": 1}
    whole, spread = (
        dict(case(TRAIN, shard=shard, **shared).cost().resident) for shard in ("none", "optimizer")
    )
    assert spread["weights"] == whole["weights"]
    assert spread["gradients"] == whole["gradients"]
    assert spread["optimizer and master"] == whole["optimizer and master"] / 8


def test_a_sharded_pipeline_keeps_its_stage_gathered_and_its_gradients_whole(case) -> None:
    """FSDP2 with pipeline stages: two bytes of each weight of the stage, and four of gradients."""
    shared = {"model": "Qwen/Qwen2.5-32B", "dp": 4, "shard": "fsdp", "micro_batch": 1}
    made = case(TRAIN, cluster="16xH100", pp=4, recompute=True, **shared).cost()
    stage = dict(made.resident)["weights"] / 2 * 4
    assert dict(made.working)["buffers"] == pytest.approx(6 * stage, rel=0.15)


def test_logits_stand_beside_the_layers_only_when_the_loss_is_the_worse_moment(case) -> None:
    """A deep pipeline's first stage keeps more than its last one, which has the logits."""
    shared = {"model": "Qwen/Qwen2.5-32B", "engine": "megatron", "micro_batch": 1}
    alone = case(TRAIN, dp=8, shard="fsdp", recompute=True, **shared).cost()
    deep = case(TRAIN, pp=8, recompute=False, **shared).cost()
    assert dict(alone.working)["logits"] > dict(alone.working)["activations"]
    assert "logits" not in dict(deep.working)


def test_tokens_of_a_call_have_a_limit_where_the_plan_gives_one(case) -> None:
    shared = {"model": "Qwen/Qwen2.5-0.5B", "engine": "megatron", "micro_batch": 8}
    free, limited = (case(TRAIN, micro_tokens=most, **shared).cost() for most in (None, 2048))
    tokens = peak_tokens(8, SHORT)
    ratio = dict(limited.working)["logits"] / dict(free.working)["logits"]
    assert ratio == pytest.approx(2048 / tokens)
