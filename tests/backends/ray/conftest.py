"""One Ray cluster of two nodes for all tests here, and what a run must leave behind: nothing."""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.backends.ray.run import Seat
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster


@pytest.fixture
def cores(tmp_path: Path) -> Callable[..., Cluster]:
    """A cluster file of processor cores, read."""

    def make(devices: int = 2, machines: int = 1) -> Cluster:
        file = tmp_path / f"{machines}x{devices}.toml"
        file.write_text(
            f'name = "cores"\n[[node_group]]\nname = "cpu"\ndevice = "cpu-core"\n'
            f"nodes = {machines}\ndevices_per_node = {devices}\ncpus = 2\nmemory_gb = 4\n"
        )
        return load_cluster(str(file))

    return make


@pytest.fixture
def seats(ray_nodes: list[str]) -> Iterator[dict[int, Seat]]:
    """Filled by a run with where its workers live; fails when the run leaves anything of itself."""
    import ray
    from ray.util.placement_group import placement_group_table

    found: dict[int, Seat] = {}
    before, groups, names = set(actors()), set(placement_group_table()), _names()
    objects, free = stored(), ray.available_resources().get("CPU", 0)
    yield found
    gc.collect()  # exceptions that a test has caught hold its frame, and that its channels
    made = {name: process for name, process in actors().items() if name not in before}
    _until(lambda: not any(_alive(process) for process in made.values()))
    assert shared_files([*made.values(), *(seat.process for seat in found.values())]) == []
    table: dict[str, Any] = placement_group_table()
    assert all(group["state"] == "REMOVED" for n, group in table.items() if n not in groups)
    # More may be free than before: Ray gives back late what an earlier test has had.
    _until(lambda: ray.available_resources().get("CPU", 0) >= free)
    _until(lambda: _names() == names)
    _until(lambda: not any(_alive(seat.process) for seat in found.values()))
    _until(lambda: stored() <= objects)


def _names() -> list[Any]:
    """Of named actors."""
    import ray

    return ray.util.list_named_actors(all_namespaces=True)


def actors() -> dict[str, int]:
    """The process of each actor that has ever been started in this session, by the actor's id."""
    from ray._private import state

    known = state.actors()
    return {name: actor["Pid"] for name, actor in known.items() if actor.get("Pid")}


def shared_files(processes: Sequence[int]) -> list[str]:
    """Names in /dev/shm that processes have made: such names have the number of their maker."""
    folder = Path("/dev/shm")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    made = {str(process) for process in processes}
    return [name for name in names if made.intersection(re.findall(r"\d+", name))]


def stored() -> int:
    """Objects in the shared memory of all nodes."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.num_local_objects


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _until(holds: Callable[[], Any]) -> None:
    """Poll for at most ten seconds: Ray gives back asynchronously."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "not within ten seconds"
        time.sleep(0.05)  # between looks, not instead of one
