"""Which GPUs a process sees, on a Ray node that claims to have four."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, logging, os, sys
import ray
from rlinf_graph.backends.ray.workers import Reservation, Worker, WorkerGroup
from rlinf_graph.ir.cluster_file import load_cluster

class Seer(Worker):
    def sees(self):
        return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["LOCAL_RANK"], str(self.device)

ray.init(address="local", num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False,
         logging_level=logging.ERROR)
with Reservation(load_cluster(sys.argv[1])) as made:
    wide = made.on([2, 3, 0, 1], devices_per_process=2)
    with WorkerGroup.launch(Seer, (), wide, name="wide") as wide:
        print(json.dumps(wide.sees().wait(60)))
    with WorkerGroup.launch(Seer, (), made.on([1], processes_per_device=2), name="dense") as dense:
        print(json.dumps(dense.sees().wait(60)))
    with WorkerGroup.launch(Seer, (), made.without_devices(), name="bare") as bare:
        print(json.dumps(bare.sees().wait(60)))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_processes_see_their_gpus_alone(tmp_path: Path) -> None:
    cluster, program = tmp_path / "gpus.toml", tmp_path / "program.py"
    group = '[[node_group]]\nname = "a"\ndevice = "H100"\nnodes = 1\n'
    cluster.write_text(f'name = "gpus"\n{group}devices_per_node = 4\ncpus = 2\n')
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(cluster)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=170).stdout
    assert [json.loads(line) for line in told.splitlines() if line.startswith("[[")] == [
        [["2,3", "0", "cuda:0"], ["0,1", "1", "cuda:0"]],
        [["1", "0", "cuda:0"], ["1", "1", "cuda:0"]],
        [["", "0", "cpu"]],
    ]
