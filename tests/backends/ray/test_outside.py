"""The command line joins a Ray cluster that was there before, and leaves it as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from rlinf_graph.backends.ray.placement import LABEL, Placement
from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError

PIPELINE = Path(__file__).parents[2] / "plans" / "pipeline.py"
ENDS_S = 10.0

pytestmark = pytest.mark.timeout(180)


def started(tmp_path: Path, iterations: int) -> subprocess.Popen[str]:
    """A run of the command line on the cluster of the tests."""
    command = [sys.executable, "-c", "from rlinf_graph.cli.main import main; main()"]
    command += ["run", str(PIPELINE), "--cluster", "2xcpu", "--backend", "ray"]
    command += ["--address", ray.get_runtime_context().gcs_address]
    command += ["--iterations", str(iterations), "--out", str(tmp_path / "out")]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@pytest.mark.usefixtures("seats")
def test_a_run_joins_a_cluster(tmp_path: Path) -> None:
    told, _ = started(tmp_path, 2).communicate(timeout=120)
    assert "2 iterations in" in told
    assert (tmp_path / "out").is_dir()


@pytest.mark.usefixtures("seats")
def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    process = started(tmp_path, 500)
    assert process.stdout is not None
    first = process.stdout.readline()  # after a tenth of the run
    assert "50/500" in first
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < ENDS_S
    assert process.returncode == 130
    assert "interrupted" in told
    assert "Traceback" not in told


def test_node_groups_go_to_the_nodes_that_are_labelled_so(
    ray_nodes: list[str], cores: Callable[..., Cluster], seats: dict[int, Seat],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The label of the node that would be taken last decides."""
    del seats
    alive = ray.nodes()
    first, last = sorted(alive, key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))
    for node, name in ((first, "other"), (last, "cpu")):
        node["Labels"] = {**node.get("Labels", {}), LABEL: name}
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    placement = Placement(cores())
    try:
        strategy = placement.options(0)["scheduling_strategy"]
        where = ray.remote(_node).options(num_cpus=1, scheduling_strategy=strategy).remote()
        assert ray.get(where) == last["NodeID"]
    finally:
        placement.remove()
    last["Labels"][LABEL] = "other"
    with pytest.raises(CompileError, match="no free node"):
        Placement(cores())
    assert last["NodeID"] in ray_nodes


def _node() -> str:
    return ray.get_runtime_context().get_node_id()
