"""The script judges files of measurements that it was not fitted to.

The files hold what tables look like; their figures are made up, so nothing is said of errors.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "cost_model.py"
Results = dict[str, Any]

RL_STEP = {
    "source": "a paper",
    "model": "Qwen2.5-32B",
    "gpu": "H100-SXM",
    "n_gpus": "64",
    "mode": "sync",
    "prompts": "256",
    "group": "8",
    "max_len": "8,192",
    "avg_len": "2,000",
    "gen_tp": "4",
    "train_tp": "8",
    "step_s": "300",
    "a column of theirs": "x",
}
RL_STEPS = (
    RL_STEP,
    {**RL_STEP, "mode": "Async 1-step", "gpu": "NVIDIA A100-SXM4-80GB"},
    {**RL_STEP, "gen_tp": "", "train_tp": "", "model": "Llama-3.1-70B", "gpu": "H200"},
    {**RL_STEP, "n_gpus": "60", "model": "Llama-3.1-70B"},
    {**RL_STEP, "model": "Qwen2.5-7B", "n_gpus": "8", "gen_tp": "8", "max_len": "50"},
    {**RL_STEP, "model": "NoSuchModel-9B"},
    {**RL_STEP, "notes": "CHECK the batch"},
    {**RL_STEP, "gpu": ""},
    {**RL_STEP, "gpu": "TPU v5"},
    {**RL_STEP, "step_s": "n/a"},
)
TRAINED = {
    "kind": "pretrain",
    "model": "Qwen2.5-32B",
    "gpu": "H100-SXM",
    "n_gpus": "64",
    "precision": "BF16",
    "gbs": "512",
    "mbs": "1",
    "seq_len": "4,096",
    "tp": "4",
    "pp": "2",
    "tok_s_gpu": "2,000",
}
TRAINING = (
    TRAINED,
    {**TRAINED, "model": "Llama-3.1-70B", "tok_s_gpu": "", "mfu": "0.4", "precision": "FP16"},
    {**TRAINED, "tp": "", "pp": "", "n_gpus": "36"},
    {**TRAINED, "model": "NoSuchModel-9B"},
    {**TRAINED, "n_gpus": "12"},
)
SERVED = {
    "model": "Qwen2.5-32B",
    "gpu": "H100-SXM",
    "precision": "FP8",
    "layout": "TP4",
    "n_gpus": "4",
    "isl": "1,000",
    "osl": "1000",
    "out_tok_s": "9,000",
}
DECODE = (
    SERVED,
    {**SERVED, "model": "Llama-3.1-70B", "layout": "", "n_gpus": "8", "precision": "BF16"},
    {**SERVED, "out_tok_s": "", "out_tok_s_per_gpu": "2000", "layout": "tp4"},
    {**SERVED, "precision": "INT3"},
    {**SERVED, "model": "NoSuchModel-9B"},
)


def judge(folder: Path, files: Mapping[str, Sequence[Mapping[str, str]]]) -> Results:
    """What the script writes of files with these rows; an empty one has no bytes at all."""
    arguments = ["--json", str(folder / "made.json")]
    for name, rows in files.items():
        path = folder / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            if rows:
                columns = list(dict.fromkeys(column for row in rows for column in row))
                writer = csv.DictWriter(file, columns, lineterminator="\n\n")
                writer.writeheader()
                writer.writerows(rows)
        arguments += [f"--{name}", str(path)]
    made = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert made.returncode == 0, made.stderr
    return json.loads((folder / "made.json").read_text("utf-8"), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("others")
    return judge(folder, {"rl-steps": RL_STEPS, "training": TRAINING, "decode": DECODE})


def reasons(results: Results, kind: str) -> list[str]:
    return [out["reason"] for out in results[kind]["left_out"]]


def test_every_kind_has_all_figures(results: Results) -> None:
    assert list(results) == ["rl_steps", "training", "decode", "memory"]
    for kind, rows in (("rl_steps", 5), ("training", 3), ("decode", 3), ("memory", 0)):
        for made in (results[kind], results[kind]["leave_one_model_out"]):
            assert made["rows"] == len(made["predictions"]) == rows
            assert {"median_error", "p90_error", "coverage_80", "tau", "pairs"} <= set(made)
            assert (made["median_error"] is None) == (rows == 0)
        assert len(results[kind]["constants"]) <= 12
    assert set(results["rl_steps"]["pairs"]) >= {"counts", "pairs"}


def test_every_prediction_says_what_it_is(results: Results) -> None:
    for made in results.values():
        for one in made["predictions"] + made["leave_one_model_out"]["predictions"]:
            low, high = one["interval"]
            assert 0 < low < one["predicted"] < high
            assert one["error"] == pytest.approx(one["predicted"] / one["measured"] - 1)
            assert one["provenance"] in ("roofline", "measured kernel")
            assert one["row"]
            assert one["unit"]


def test_rows_that_are_left_out_have_a_reason(results: Results) -> None:
    assert reasons(results, "rl_steps") == [
        "unknown model NoSuchModel-9B",
        "marked CHECK",
        "no device type",
        "unknown device TPU v5",
        "no step time",
    ]
    assert reasons(results, "training") == [
        "unknown model NoSuchModel-9B",
        "a layout that does not divide the number of devices",
    ]
    assert reasons(results, "decode") == [
        "number format INT3 is not known",
        "unknown model NoSuchModel-9B",
    ]


def test_a_layout_that_a_row_lacks_is_the_compilers_and_the_row_says_so(results: Results) -> None:
    given, partly, lacking, uneven, _heads = results["rl_steps"]["predictions"]
    for one in (lacking, uneven):
        assert "layout chosen by the compiler" in one["assumed"]
    assert "layout chosen by the compiler" not in given["assumed"] + partly["assumed"]
    assert "the given layout cannot run on so many devices" in uneven["assumed"]
    assert "fits" in " ".join(results["training"]["predictions"][2]["assumed"])


def test_models_without_a_part_in_the_fit_are_predicted_with_the_shipped_constants(
    results: Results,
) -> None:
    """Refitting to a few rows of others would only make the constants worse."""
    for kind in ("rl_steps", "training", "decode"):
        made, held_out = results[kind], results[kind]["leave_one_model_out"]
        for one, other in zip(made["predictions"], held_out["predictions"], strict=True):
            if one["model"] == "Qwen/Qwen2.5-32B":
                assert one["predicted"] == other["predicted"]


def test_one_model_and_files_without_rows(tmp_path: Path) -> None:
    """A single model has the shipped interval; empty files give no figures."""
    from rlinf_graph.compiler.cost.constants import CONSTANTS
    from rlinf_graph.compiler.cost.uncertainty import interval

    made = judge(tmp_path, {"rl-steps": (), "training": (TRAINED,), "decode": ()})
    for kind in ("rl_steps", "decode", "memory"):
        assert made[kind]["predictions"] == made[kind]["left_out"] == []
        assert made[kind]["leave_one_model_out"]["median_error"] is None
    (one,) = made["training"]["predictions"]
    width = CONSTANTS["gpu"].widths.passes
    assert one["interval"] == pytest.approx(interval(one["predicted"], width))
