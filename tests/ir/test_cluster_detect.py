import os
import stat
from pathlib import Path

import pytest

from rlinf_graph.ir.detect import available_memory, cores, detect
from rlinf_graph.ir.diagnostic import CompileError

GIGA = 1e9


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores and 16 GB, no GPU; files that are not written are not there."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(4)), raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "meminfo").write_text("MemTotal: 20000000 kB\nMemAvailable:   15625000 kB\n")
    return tmp_path


def put_nvidia_smi(machine: Path, output: str) -> None:
    program = machine / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '{output}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_cores_share_the_available_memory(machine: Path) -> None:
    cluster = detect(machine, machine)
    (group,) = cluster.groups
    assert (cluster.size, cluster.cpus, group.device.name) == (4, 4, "cpu-core")
    assert group.device.memory == 4.0 * GIGA


def test_the_quota_of_a_cgroup_counts(machine: Path) -> None:
    (machine / "cpu.max").write_text("250000 100000\n")
    (machine / "memory.max").write_text("6000000000\n")
    (machine / "memory.current").write_text("2000000000\n")
    assert cores(machine) == 2
    assert available_memory(machine, machine) == 4 * GIGA
    assert detect(machine, machine).groups[0].device.memory == 2 * GIGA


def test_an_older_cgroup_counts(machine: Path) -> None:
    (machine / "cpu").mkdir()
    (machine / "memory").mkdir()
    (machine / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (machine / "memory" / "memory.limit_in_bytes").write_text("8000000000\n")
    (machine / "memory" / "memory.usage_in_bytes").write_text("0\n")
    assert cores(machine) == 1
    assert available_memory(machine, machine) == 8 * GIGA


def test_a_cgroup_without_limits_changes_nothing(machine: Path) -> None:
    (machine / "cpu.max").write_text("max 100000\n")
    (machine / "memory.max").write_text("max\n")
    assert cores(machine) == 4
    assert available_memory(machine, machine) == 16 * GIGA


def test_gpus_are_the_devices_where_there_are_any(machine: Path) -> None:
    put_nvidia_smi(machine, "NVIDIA H100 80GB HBM3, 81559\\nNVIDIA H100 80GB HBM3, 81559\\n")
    cluster = detect(machine, machine)
    assert cluster.summary() == "2 × H100-SXM-80GB"
    assert cluster.cpus == 4


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("NVIDIA A100-SXM4-40GB, 40960", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB, 81920", "A100-80GB"),
        ("NVIDIA H200, 143771", "H200"),
        ("NVIDIA L40S, 46068", "L40S"),
        ("NVIDIA H20, 97871", "H20"),
        ("NVIDIA B200, 183359", "B200"),
    ],
)
def test_names_of_nvidia_smi_are_known(machine: Path, line: str, name: str) -> None:
    put_nvidia_smi(machine, line + "\\n")
    assert detect(machine, machine).groups[0].device.name == name


def test_a_gpu_that_is_not_in_the_catalogue_is_refused(machine: Path) -> None:
    put_nvidia_smi(machine, "Tesla T4, 15360\\n")
    with pytest.raises(CompileError, match=r"RG0405.*the catalogue has no `Tesla T4`"):
        detect(machine, machine)
