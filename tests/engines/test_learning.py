"""vLLM samples and Megatron trains, on Ray: rewards rise. The long form is a benchmark."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
ITERATIONS, ENDS = 24, 6
RISES = 0.05

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not VLLM.exists() or importlib.util.find_spec("megatron") is None:
        pytest.fail("vllm or megatron is not installed here: `make test-learning` does it")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)
    import grpo_engines

    return grpo_engines


def test_rewards_rise_with_vllm_and_megatron(benchmark: ModuleType, tmp_path: Path) -> None:
    warm = benchmark.warmed(0, tmp_path / "warm_up")
    before = benchmark.examined(warm, 0, tmp_path / "before")
    side = benchmark.SIDES[1]
    assert (side.engines["rollout"], side.engines["train"]) == ("vllm", "megatron")
    done = benchmark.trained(side, ITERATIONS, 0, warm, tmp_path / "run", {"vllm": str(VLLM)})
    first, last = (statistics.fmean(part) for part in (done.rewards[:ENDS], done.rewards[-ENDS:]))
    assert len(done.rewards) == ITERATIONS
    assert last > first + RISES
    assert done.accuracy > before
    assert 0 < done.mismatch_mean <= 1e-5
    assert done.mismatch_max <= 1e-3


def test_a_node_of_ones_own_is_run_and_analyzed_with_them(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    """By the command line, as with every other engine."""
    words = (
        "run pipelines/custom_node.py --backend ray --cluster 3xcpu --iterations 3 --analyze"
        " --set rollout=vllm train=megatron"
    )
    pins = "--pin", "rollout policy=0", "--pin", "train policy=1-2 tp 2"
    command = [
        sys.executable, "-m", "rlinf_graph.cli.main", *words.split(), *pins,
        "--python", f"vllm={VLLM}", "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "LengthPenalty" in done.stdout
    records = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(records) == 3
    assert all("length_penalty/over" in json.loads(record) for record in records)
    analyzed = json.loads((tmp_path / "analyze.json").read_text())
    rows = {row["name"]: row for row in analyzed["rows"]}
    for name, engine in (("rollout policy", "vllm"), ("train policy", "megatron")):
        assert rows[name]["engine"] == engine
        assert rows[name]["measured"]["busy"]["median"] > 0
