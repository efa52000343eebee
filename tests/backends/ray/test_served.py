"""An average in worker processes is the one of a single process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlinf_graph.backends.local import run as local
from rlinf_graph.backends.ray import run as on_ray
from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.ir.cluster import Cluster
from tests.backends.local.test_served import prepared

pytestmark = pytest.mark.timeout(180)
WATCHED = ("weights/reference", "weights/trained", "kl/coefficient", "kl/per_sample")


@pytest.mark.parametrize("mode", ["collocated", "disaggregated"])
def test_workers_hold_the_weights_of_one_process(
    mode: str, cores: Callable[..., Cluster], seats: dict[int, Seat], tmp_path: Path
) -> None:
    ready, _ = prepared(mode, tmp_path, every=2, decay=0.75)
    one: list[IterationRecord] = []
    local.run(
        ready.program, ready.graph, ready.plan, cores(2),
        iterations=6, seed=3, report=one.append,
    )  # fmt: skip
    other: list[IterationRecord] = []
    on_ray.run(
        ready.program, ready.graph, ready.plan, cores(2),
        iterations=6, seed=3, report=other.append, placed=seats.update,
    )  # fmt: skip
    by_iteration = {record.iteration: record.metrics for record in other}
    for name in WATCHED:
        expected = {record.iteration: record.metrics[name] for record in one}
        found = {iteration: metrics[name] for iteration, metrics in by_iteration.items()}
        assert found == pytest.approx(expected, rel=1e-10)
        assert len(set(expected.values())) > 2
