"""This machine as a cluster: its NVIDIA GPUs, else its processor cores. Loads no torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rlinf_graph.ir import hardware
from rlinf_graph.ir.cluster import Cluster, NodeGroup
from rlinf_graph.ir.diagnostic import fail

QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
TENTH = hardware.GIGA / 10  # memory is rounded down to it: it changes from call to call


def detect(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Cluster:
    """The machine this runs on, as a cluster named `local`.

    Its GPUs are the devices where `nvidia-smi` reports any; otherwise each processor core that
    this process may use is a device, with an equal share of the memory available now.

    Raises:
        CompileError: RG0405, for a GPU that the catalogue does not have.
    """
    count = cores(cgroup)
    gpus = _nvidia_gpus()
    if gpus:
        return Cluster("local", tuple(_gpu_group(n, m, k, count) for (n, m), k in gpus.items()))
    entry = hardware.catalogue()["cpu-core"]
    share = available_memory(proc, cgroup) / count
    device = replace(
        entry.device,
        memory=max(1, int(share / TENTH)) * TENTH,
        source=f"{entry.device.source}; changed",
    )
    return Cluster(
        "local", (NodeGroup("cpu", device, 1, count, count, entry.inside, entry.between),)
    )


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processor cores this process may use: affinity and the cgroup's quota, rounded down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota.isdigit():
        quota = _read(cgroup / "cpu" / "cpu.cfs_quota_us")
        period = _read(cgroup / "cpu" / "cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(quota) > 0:
        allowed = min(allowed or 1, int(quota) // int(period))
    return max(1, allowed or 1)


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that can still be used: of the machine, within what the cgroup allows."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read(proc / "meminfo"))
    machine = float(found[1]) * 1024 if found else _physical_memory()
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = _read(cgroup / limit), _read(cgroup / used)
        if most.isdigit():
            machine = min(machine, max(0.0, float(most) - float(now or 0)))
    return machine


def _physical_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""


def _nvidia_gpus() -> Counter[tuple[str, float]]:
    """How many GPUs of each (name, bytes) `nvidia-smi` reports."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Counter()
    try:
        asked = subprocess.run(
            [program, *QUERY], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Counter()
    if asked.returncode:
        return Counter()
    rows = [line.rpartition(",") for line in asked.stdout.splitlines() if "," in line]
    return Counter((name.strip(), _mebibytes(memory)) for name, _, memory in rows)


def _mebibytes(text: str) -> float:
    return float(text) * 2**20 if text.strip().isdigit() else 0.0


def _gpu_group(name: str, memory: float, count: int, cpus: int) -> NodeGroup:
    """A group for a name such as `NVIDIA H100 80GB HBM3`; the catalogue's memory when close."""
    entry = _closest(name, memory)
    if entry is None:
        raise fail(
            "RG0405",
            f"the catalogue has no `{name}`",
            notes=(f"it has {', '.join(hardware.catalogue())}",),
            help=(
                "write a cluster file that names the most similar device and replaces its figures",
                f"or plan for the processors: `{cpus}xcpu`",
            ),
        )
    device = entry.device
    links = (entry.inside, entry.between)
    return NodeGroup(device.name.lower(), device, 1, count, cpus, *links)


def _closest(name: str, memory: float) -> hardware.Entry | None:
    """The entry whose model the name contains and whose memory is at most 15 % off."""
    words = set(re.split(r"[\s-]+", name.upper()))
    for entry in hardware.catalogue().values():
        model = entry.device.name.split("-")[0].upper()
        near = not memory or abs(memory / entry.device.memory - 1) < 0.15
        if entry.device.kind == "gpu" and model in words and near:
            return entry
    return None
