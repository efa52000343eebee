"""What the benchmark of GRPO beside TRL makes of runs; running TRL needs its own environment."""

from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import grpo_vs_trl

    return grpo_vs_trl


def test_ratios_are_of_a_round_and_curves_meet_or_do_not(benchmark: ModuleType) -> None:
    settings = benchmark.SETTINGS[0]
    count = settings.iterations

    def run(seconds: float, reward: float) -> object:
        return benchmark.Run([9.0] * benchmark.WARM + [seconds] * (count - 3), [reward] * count)

    runs = {
        "ray": [run(0.5, 0.2), run(0.25, 0.4)],
        "local": [run(1.0, 0.5), run(1.0, 0.6)],
        "trl": [run(1.0, 0.3), run(1.0, 0.35)],
    }
    row = benchmark.summary(settings, runs, [0.0, 0.0])
    assert row["rounds"]["ratios"] == {"ray/trl": [2.0, 4.0], "local/trl": [1.0, 1.0]}
    assert row["ratios"] == {"ray/trl": 3.0, "local/trl": 1.0}
    assert row["samples_per_second"]["trl"] == settings.prompts * settings.samples
    assert row["rewards"]["apart"] == pytest.approx({"ray": 0.025, "local": 0.225, "trl": 0.0})
    assert row["rewards"]["spread"] == pytest.approx(0.05)
    assert len(row["rewards"]["mean"]["ray"]) == benchmark.WINDOWS
    told = "mean in a window: ray 0.025, local 0.225; TRL's seeds differ by 0.050"
    assert told in benchmark.shown(row)


def test_rewards_of_both_sides(benchmark: ModuleType) -> None:
    assert benchmark.REWARDS["sevens"]("7717") == 3 / 16
    assert [benchmark.REWARDS["is_correct"](a, "012") for a in ("012", "12")] == [1.0, 0.0]


@pytest.mark.parametrize("index", [0, 1])
def test_the_pipelines_compile(benchmark: ModuleType, index: int) -> None:
    from rlinf_graph.cli.api import compile_pipeline

    settings = benchmark.SETTINGS[index]
    assert settings.iterations % benchmark.WINDOWS == 0
    compiled = compile_pipeline(benchmark.pipeline_of(settings), f"{benchmark.THREADS}xcpu")
    assert set(compiled.plan.nodes) == {"rollout policy", "train policy"}
