"""A run and a channel with more data than the object store holds, in a Ray session of their own.

    python -m tests.backends.ray.small_store free|full

`full` says that the disk may not be used either. The last line that it prints is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

STORE = 80 << 20
PARCEL_MB = {"free": 40.0, "full": 100.0}
"""Of half the store, so that what is read, what waits and what is written do not fit; or one that
does not fit by itself, however soon Ray forgets the others."""
ITEMS = 12


def the_run(megabytes: float) -> tuple[str, float]:
    """How it ends, and how many seconds after all workers had loaded."""
    from rlinf_graph.backends.ray import run as on_ray
    from rlinf_graph.backends.record import IterationRecord
    from rlinf_graph.cli.api import compile_pipeline
    from rlinf_graph.cli.loading import load_pipeline
    from rlinf_graph.ir.diagnostic import CompileError

    file = Path(__file__).parents[2] / "plans" / "faulty.py"
    pipeline, _ = load_pipeline(str(file))
    parameters = {"megabytes": megabytes, "pause_s": 0.05}
    made = compile_pipeline(pipeline, "1xcpu", parameters=parameters)
    came: list[IterationRecord] = []
    begun: list[float] = []
    try:
        on_ray.run(
            made.program, made.graph, made.plan, made.cluster, iterations=6, report=came.append,
            loaded=lambda: begun.append(time.monotonic()),
        )  # fmt: skip
    except CompileError as error:
        return str(error), time.monotonic() - begun[0]
    return f"{len(came)} iterations", time.monotonic() - begun[0]


def the_channel(megabytes: float) -> str:
    """Items without shared memory: they lie in the object store until they are read."""
    import numpy as np

    from rlinf_graph.backends.ray.channel.channel import Channel

    channel = Channel.create(shared_memory=False)
    try:
        for number in range(ITEMS):
            channel.put(np.full(int(megabytes) << 17, number, np.float64))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    came = [channel.get(timeout=60)[0] for _ in range(ITEMS)]
    return f"{len(came)} items" if came == list(range(ITEMS)) else f"{came}"


def left() -> list[str]:
    """Actors that still live."""
    from ray._private import state

    return [a["ActorID"] for a in state.actors().values() if a["State"] not in ("DEAD",)]


def main(disk: str) -> None:
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    config = {"local_fs_capacity_threshold": 0.0} if disk == "full" else {}
    ray.init(
        address="local", num_cpus=3, object_store_memory=STORE, include_dashboard=False,
        log_to_driver=False, _system_config=config,
        object_spilling_directory=tempfile.mkdtemp(),
    )  # fmt: skip
    run, seconds = the_run(PARCEL_MB[disk])
    came = the_channel(PARCEL_MB[disk] / 4)
    told: dict[str, object] = {"run": run, "seconds": seconds, "channel": came}
    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)  # between looks, not instead of one
    told["left"] = left()
    ray.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
