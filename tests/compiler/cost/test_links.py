"""Collectives inside machines and across them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlinf_graph.compiler.cost.constants import COLLECTIVE
from rlinf_graph.compiler.cost.links import Ring, ring
from rlinf_graph.ir.cluster import Link
from rlinf_graph.ir.cluster_file import load_cluster

INSIDE, BETWEEN = Link(450e9, 4e-6), Link(50e9, 10e-6)
SIZES = st.floats(1, 1e11)
ACROSS = st.builds(
    lambda machines, each: Ring(machines * each, each, INSIDE, BETWEEN),
    st.integers(2, 64),
    st.sampled_from([1, 2, 4, 8]),
)


def test_small_messages_go_in_stages_and_large_ones_around() -> None:
    many = Ring(512, 8, INSIDE, BETWEEN)
    small, large = 1e3, 1e11
    assert many.all_gather(small) == pytest.approx(many.latency, rel=0.01)
    assert many.latency == pytest.approx(3 * 4e-6 + 6 * 10e-6)
    assert many.all_gather(large) == pytest.approx(
        large * 511 / 512 / (COLLECTIVE * 400e9), rel=0.01
    )


@given(ACROSS, SIZES, st.floats(1, 100))
def test_wider_links_are_never_slower(one: Ring, size: float, wider: float) -> None:
    def wide(link: Link) -> Link:
        return Link(link.bandwidth * wider, link.latency)

    better = Ring(one.size, one.per_machine, wide(one.inside), wide(BETWEEN))
    assert better.all_reduce(size) <= one.all_reduce(size) * (1 + 1e-9)
    assert better.dispatch(size, 8) <= one.dispatch(size, 8) * (1 + 1e-9)


@given(ACROSS, st.lists(SIZES, min_size=1, max_size=5))
def test_arrays_are_as_their_elements(one: Ring, sizes: list[float]) -> None:
    together = one.all_gather(np.asarray(sizes))
    assert together == pytest.approx([one.all_gather(size) for size in sizes])


@given(ACROSS, SIZES, st.integers(1, 32))
def test_a_token_sent_once_is_never_slower_than_its_copies(
    one: Ring, size: float, visits: int
) -> None:
    assert one.dispatch(size, visits) <= one.all_to_all(size * visits) * (1 + 1e-9)
    assert one.dispatch(size, 1) == pytest.approx(one.all_to_all(size))


def test_a_rack_is_one_machine_to_its_links() -> None:
    rack = load_cluster("144xGB200")
    assert ring(rack, range(72)).between is None
    assert ring(rack, range(144)).machines == 2
