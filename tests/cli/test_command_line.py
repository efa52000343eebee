"""The command line: what it prints and leaves, and that bad input never ends in a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.cli import main
from rlinf_graph.ir.cluster_file import detect, load_cluster

ROOT = Path(__file__).parents[2]
PIPELINE = '''"""A pipeline of two."""

from rlinf_graph import rl

policy = rl.Model("Qwen/Qwen2.5-0.5B")


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def exam() -> None:
    rl.evaluate(policy, rl.dataset("openai/gsm8k", batch=64), is_correct)


@rl.pipeline
def grpo(samples: int = 8, max_staleness: int = 0) -> None:
    prompts = rl.dataset("openai/gsm8k", batch=64)
    rollouts = rl.rollout(policy, prompts, samples=samples)
    advantages = rl.group_advantages(rl.verify(rollouts, is_correct))
    weights = rl.train(policy, rollouts, advantages)
    rl.sync(weights, into=policy, max_staleness=max_staleness)
'''
CLUSTER = """
[[node_group]]
name = "gpus"
device = "H100"
nodes = 2
devices_per_node = 4
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a pipeline and a cluster of two machines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    return tmp_path


class CommandLine:
    """Calls `main` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        self.monkeypatch.setattr(sys, "argv", ["rlinf-graph", *arguments])
        with pytest.raises(SystemExit) as stop:
            main.main()
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        code = stop.value.code
        return code if isinstance(code, int) else 0, out, err

    def fails(self, code: str, *arguments: str) -> str:
        """The text of a command that ends with this diagnostic."""
        status, _out, err = self(*arguments)
        assert status == 1
        assert f"error[{code}]" in err
        return err


@pytest.fixture
def rlinf_graph(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def compiled(rlinf_graph: CommandLine) -> dict[str, Any]:
    command = ("compile", "pipeline.py", "--cluster", "cluster.toml", "-o", "plan.json")
    status, out, err = rlinf_graph(*command)
    assert (status, out) == (0, "")
    assert "plan written to plan.json" in err
    assert "other pipelines in this file: exam" in err
    return json.loads(Path("plan.json").read_text())


@pytest.mark.parametrize("explain", [(), ("--explain",), ("--explain=text",)])
def test_compile_prints_the_plan(
    here: Path, rlinf_graph: CommandLine, explain: tuple[str, ...]
) -> None:
    command = ("compile", "pipeline.py", "--cluster", "cluster.toml", *explain)
    status, out, _err = rlinf_graph(*command)
    assert status == 0
    assert "train policy" in out
    assert "bottleneck" in out


def test_compile_prints_the_plan_as_json(here: Path, rlinf_graph: CommandLine) -> None:
    command = ("compile", "pipeline.py", "--cluster", "cluster.toml", "--explain=json")
    status, out, _err = rlinf_graph(*command)
    assert status == 0
    assert json.loads(out)


def test_a_parameter_changes_the_plan(here: Path, rlinf_graph: CommandLine) -> None:
    before = compiled(rlinf_graph)
    command = ("compile", "pipeline.py", "--cluster", "cluster.toml", "-o", "plan.json")
    status, _out, _err = rlinf_graph(*command, "--set", "samples=16", "--set", "max_staleness=1")
    after = json.loads(Path("plan.json").read_text())
    assert status == 0
    assert after["graph"] != before["graph"]
    assert after["pipeline"]["parameters"] == {"samples": 16, "max_staleness": 1}


def test_a_pipeline_is_chosen_by_name(here: Path, rlinf_graph: CommandLine) -> None:
    status, out, err = rlinf_graph(
        "compile", "pipeline.py:exam", "--cluster", "8xH100", "--dump-after", "verify"
    )
    assert status == 0
    assert json.loads(out)["name"] == "exam"
    assert "other pipelines in this file: grpo" in err


def leaves(placement: dict[str, Any]) -> list[dict[str, Any]]:
    if placement["kind"] == "node":
        return [placement]
    return [leaf for part in placement["parts"] for leaf in leaves(part)]


def unknown_field(plan: dict[str, Any]) -> None:
    plan["nodes"]["train policy"]["microbatch"] = 1


def wrong_kind(plan: dict[str, Any]) -> None:
    plan["nodes"]["train policy"]["micro_batch"] = "many"


def overlapping_split(plan: dict[str, Any]) -> None:
    parts = leaves(plan["placement"])
    plan["placement"] = {"kind": "split", "parts": parts}


def straddling(plan: dict[str, Any]) -> None:
    for leaf in leaves(plan["placement"]):
        leaf["devices"] = "2-5"
        plan["nodes"][leaf["node"]]["parallel"] = {"tp": 4}


def no_such_device(plan: dict[str, Any]) -> None:
    leaves(plan["placement"])[0]["devices"] = "8-15"


def reversed_range(plan: dict[str, Any]) -> None:
    leaves(plan["placement"])[0]["devices"] = "7-0"


def other_pipeline(plan: dict[str, Any]) -> None:
    plan["graph"] = "0" * 16


def node_left_out(plan: dict[str, Any]) -> None:
    plan["placement"] = leaves(plan["placement"])[0]


def unknown_node(plan: dict[str, Any]) -> None:
    leaves(plan["placement"])[0]["node"] = "rolout policy"


def too_stale(plan: dict[str, Any]) -> None:
    plan["syncs"]["sync policy"]["staleness"] = 3


def does_not_divide(plan: dict[str, Any]) -> None:
    plan["nodes"]["train policy"]["micro_batch"] = 7


def later_format(plan: dict[str, Any]) -> None:
    plan["format"] = 2


def against_the_flow(plan: dict[str, Any]) -> None:
    for leaf in leaves(plan["placement"]):
        leaf["devices"] = "0-7"
    parts = list(reversed(leaves(plan["placement"])))
    plan["placement"] = {"kind": "turn", "parts": parts}


WRONG_EDITS = {
    unknown_field: ("RG0601", "nodes.train policy.microbatch: unknown field"),
    wrong_kind: ("RG0601", "nodes.train policy.micro_batch: a valid integer"),
    overlapping_split: ("RG0602", "at once"),
    straddling: ("RG0406", "straddles machines"),
    no_such_device: ("RG0402", "8-15, cluster has 8 (0-7)"),
    reversed_range: ("RG0601", "`7-0` is no device range"),
    other_pipeline: ("RG0602", "made for another version"),
    node_left_out: ("RG0602", "has no place in the plan"),
    unknown_node: ("RG0602", "did you mean `rollout policy`?"),
    too_stale: ("RG0302", "3 iterations old, 0 allowed"),
    does_not_divide: ("RG0403", "do not divide its minibatch of 512 samples"),
    later_format: ("RG0601", "format: 1"),
    against_the_flow: ("RG0602", "wait for each other"),
}


@pytest.mark.parametrize("edit", WRONG_EDITS, ids=lambda edit: edit.__name__)
def test_a_wrong_edit_of_a_plan_gives_its_diagnostic(
    here: Path, rlinf_graph: CommandLine, edit: Any
) -> None:
    code, said = WRONG_EDITS[edit]
    plan = compiled(rlinf_graph)
    edit(plan)
    (here / "plan.json").write_text(json.dumps(plan))
    command = ("run", "pipeline.py", "--cluster", "cluster.toml", "--plan", "plan.json")
    assert said in rlinf_graph.fails(code, *command)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"plan"', "{}", "\x00", "plan: 1"])
def test_a_file_that_is_no_plan(here: Path, rlinf_graph: CommandLine, content: str) -> None:
    (here / "plan.json").write_text(content)
    command = ("run", "pipeline.py", "--cluster", "cluster.toml", "--plan", "plan.json")
    assert "plan.json is no plan" in rlinf_graph.fails("RG0601", *command)


@pytest.mark.parametrize("plan", [".", "missing.json", "bytes.json"])
def test_a_plan_that_cannot_be_read(here: Path, rlinf_graph: CommandLine, plan: str) -> None:
    (here / "bytes.json").write_bytes(b"\xff\xfe\x80")
    rlinf_graph.fails("RG0601", "run", "pipeline.py", "--cluster", "8xH100", "--plan", plan)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("RG0107", ("--set", "sampels=8")),
        ("RG0107", ("--set", "samples=many")),
        ("RG0107", ("--set", "samples")),
        ("RG0107", ("--set", "=3")),
        ("RG0204", ("--set", "samples=1")),
        ("RG0104", ("--set", "samples=0")),
        ("RG0302", ("--set", "max_staleness=-1")),
        ("RG0407", ("--pin", "rolout=0-3")),
        ("RG0407", ("--pin", "rollout=three")),
        ("RG0407", ("--pin", "rollout=7-0")),
        ("RG0407", ("--pin", "rollout=0,0")),
        ("RG0407", ("--pin", "rollout=0-99999999999")),
        ("RG0407", ("--pin", "rollout=tp 0")),
        ("RG0402", ("--pin", "rollout=0-15")),
        ("RG0406", ("--pin", "rollout=tp 4")),
        ("RG0405", ("--cluster", "nowhere.toml")),
        ("RG0405", ("--cluster", "8xH1000")),
        ("RG0405", ("--cluster", "0xH100")),
        ("RG0405", ("--cluster", "")),
        ("RG0405", ("--cluster", ".")),
        ("RG0405", ("--cluster", "pipeline.py")),
        ("RG0405", ("--cluster", "bytes")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_a_wrong_option_gives_its_diagnostic(
    here: Path, rlinf_graph: CommandLine, code: str, arguments: tuple[str, ...]
) -> None:
    (here / "bytes").write_bytes(b"\xff\xfe\x80")
    cluster = () if "--cluster" in arguments else ("--cluster", "cluster.toml")
    rlinf_graph.fails(code, "compile", "pipeline.py", *cluster, *arguments)


@pytest.mark.parametrize(
    ("code", "name", "content"),
    [
        ("RG0002", "empty.py", b""),
        ("RG0002", "none.py", b"x = 1\n"),
        ("RG0002", "text.txt", b"x = 1\n"),
        ("RG0003", "syntax.py", b"def f(:\n"),
        ("RG0003", "indent.py", b"def f():\nreturn 1\n"),
        ("RG0003", "raises.py", b"1 / 0\n"),
        ("RG0003", "exits.py", b"raise SystemExit(0)\n"),
        ("RG0003", "missing.py", b"import no_such_module\n"),
        ("RG0003", "nulls.py", b"x = '\x00'\n"),
        ("RG0003", "bytes.py", b"\xff\xfe\x80"),
        ("RG0003", "deep.py", b"def f(): f()\nf()\n"),
    ],
)
def test_a_file_without_a_pipeline(
    here: Path, rlinf_graph: CommandLine, code: str, name: str, content: bytes
) -> None:
    (here / name).write_bytes(content)
    assert name in rlinf_graph.fails(code, "compile", name, "--cluster", "8xH100")


@pytest.mark.parametrize("target", ["missing.py", ".", "pipeline.py:gpro", "", ":grpo"])
def test_a_pipeline_that_is_not_there(here: Path, rlinf_graph: CommandLine, target: str) -> None:
    rlinf_graph.fails("RG0002", "compile", target, "--cluster", "8xH100")


def test_a_wrong_command_shows_how_it_is_used(here: Path, rlinf_graph: CommandLine) -> None:
    for arguments in (("compil",), ("compile",), ("run", "pipeline.py", "--iterations", "0"),
                      ("compile", "pipeline.py", "--explain=html"), ("explain",),
                      ("compile", "pipeline.py", "--dump-after", "verfy")):  # fmt: skip
        status, _out, err = rlinf_graph(*arguments)
        assert status == 2
        assert "Usage" in err


def test_an_unknown_backend(here: Path, rlinf_graph: CommandLine) -> None:
    command = ("run", "pipeline.py", "--cluster", "8xH100", "--backend", "rya")
    rlinf_graph.fails("RG0606", *command)


def test_nodes_are_listed_with_their_signatures(rlinf_graph: CommandLine) -> None:
    status, out, _err = rlinf_graph("nodes")
    assert status == 0
    assert "group_advantages(rewards: Rewards) -> Advantages" in out
    assert "options: samples=1, max_tokens=512" in out


def test_a_detected_cluster_loads_again(here: Path, rlinf_graph: CommandLine) -> None:
    status, _out, err = rlinf_graph("cluster", "detect", "-o", "local.toml")
    assert status == 0
    assert "written to local.toml" in err
    loaded = load_cluster("local.toml")
    assert [g.devices_per_node for g in loaded.groups] == [
        g.devices_per_node for g in detect().groups
    ]


def test_output_into_a_folder_that_is_not_there(here: Path, rlinf_graph: CommandLine) -> None:
    command = ("compile", "pipeline.py", "--cluster", "8xH100", "-o", "nowhere/plan.json")
    rlinf_graph.fails("RG0004", *command)
    rlinf_graph.fails("RG0004", "cluster", "detect", "-o", ".")
    run = ("run", "pipeline.py:exam", "--cluster", "8xH100", "--out", "pipeline.py/run")
    rlinf_graph.fails("RG0004", *run)


def test_pages_are_printed_whatever_the_case(rlinf_graph: CommandLine) -> None:
    status, out, _err = rlinf_graph("explain", "rg0301")
    assert status == 0
    assert out.startswith("# RG0301: ")
    assert "did you mean" in rlinf_graph.fails("RG0001", "explain", "RG0310")
    rlinf_graph.fails("RG0001", "explain", "../plan")


def test_a_diagnostic_names_its_page(here: Path, rlinf_graph: CommandLine) -> None:
    err = rlinf_graph.fails("RG0107", "compile", "pipeline.py", "--set", "sampels=8")
    assert err.endswith("for more: rlinf-graph explain RG0107\n")


def test_the_installed_command(here: Path) -> None:
    command = [sys.executable, "-m", "rlinf_graph.cli.main", "compile", "pipeline.py"]
    done = subprocess.run(
        [*command, "--cluster", "cluster.toml", "--set", "samples=1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error[RG0204]")
