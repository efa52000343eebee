import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.flops import Adapter
from rlinf_graph.compiler.cost.iteration_constants import IterationConstants
from rlinf_graph.compiler.cost.links import Ring
from rlinf_graph.compiler.cost.lookup import known_models
from rlinf_graph.compiler.cost.sync import Refit, matrices
from rlinf_graph.ir.cluster import Link
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.graph import Graph, ModelDef

SHAPE = known_models()["Qwen/Qwen2.5-7B"]
WEIGHTS = SHAPE.parameters()


def refit(
    size: int, bandwidth: float = 50e9, changed: float = 1.0, weights: float = WEIGHTS
) -> Refit:
    ring = Ring(size, 1, Link(450e9, 4e-6), Link(bandwidth, 1e-5) if size > 1 else None)
    return Refit(SHAPE, weights, 2, ring, 2e12, IterationConstants(), changed)


def test_on_one_device_weights_are_read_and_written() -> None:
    assert refit(1).parts() == {"weights": pytest.approx(2 * 2 * WEIGHTS / 2e12)}


def test_between_devices_all_weights_pass_the_slowest_link() -> None:
    parts = refit(16).parts()
    share = IterationConstants().refit
    assert parts["weight transfer"] == pytest.approx(2 * WEIGHTS / (50e9 * share), rel=0.01)
    # 28 layers of four projections and three feed-forward matrices; embedding and head.
    assert matrices(SHAPE) == 28 * 7 + 2
    assert parts["weight launches"] == matrices(SHAPE) * IterationConstants().matrix_s


def test_experts_are_sent_one_by_one() -> None:
    mixture = known_models()["Qwen/Qwen3-30B-A3B"]
    assert matrices(mixture) == 48 * (4 + 1 + 128 * 3) + 2


@given(size=st.integers(2, 512), low=st.floats(1e9, 1e11), more=st.floats(1, 10))
def test_a_faster_link_is_never_slower(size: int, low: float, more: float) -> None:
    slow, fast = (sum(refit(size, b).parts().values()) for b in (low, low * more))
    assert fast <= slow * (1 + 1e-12)


@given(size=st.integers(1, 64), changed=st.floats(0, 1))
def test_a_delta_never_moves_more_than_all_weights(size: int, changed: float) -> None:
    delta, whole = refit(size, changed=changed), refit(size)
    assert delta.bytes <= whole.bytes
    assert sum(delta.parts().values()) <= sum(whole.parts().values())


def test_a_delta_sends_values_and_positions_of_what_changed() -> None:
    assert refit(16, changed=0.01).bytes == pytest.approx(0.01 * WEIGHTS * (2 + 4))


def test_adapters_of_a_rank() -> None:
    # q and o: 3584 by 3584, k and v: 3584 by 512.
    assert Adapter(16, ("q", "k", "v", "o")).parameters(SHAPE) == 28 * 16 * (
        2 * (3584 + 3584) + 2 * (3584 + 512)
    )


def test_methods_of_the_cost_model() -> None:
    costs = CostModel(Graph("g", (), (ModelDef("m", "Qwen/Qwen2.5-7B"),)), load_cluster("16xH100"))

    places = ("m", range(8), range(8, 16))
    adapter = costs.sync(*places, "adapter", rank=16).seconds
    delta = costs.sync(*places, "delta", changed=0.05).seconds
    broadcast, copy = (costs.sync(*places, method).seconds for method in ("broadcast", "copy"))
    assert adapter < delta < broadcast
    assert copy < broadcast


def test_waking_an_engine_is_part_of_switching_to_it(case) -> None:
    from rlinf_graph.ir.work import Generate, Lengths

    work = Generate(64, 100, Lengths.fixed(100, "declared"))
    made = case(work, engine="vllm").cost()
    wake = CONSTANTS["gpu"].iteration.wake_s
    moved = sum(size for _, size in made.resident) / (CONSTANTS["gpu"].iteration.host_link * 64e9)
    assert made.load_s + made.offload_s == pytest.approx(wake + 2 * moved, rel=1e-3)
