"""What the compiler must find before a launch: the message, and what its carets stand under."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.ir import graph_file
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from tests.diagnostics.pages import CLUSTER

START = """
from rlinf_graph import rl

policy = rl.Model("Qwen/Qwen2.5-0.5B")


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def grpo(samples: int = 8) -> None:
    prompts = rl.dataset("openai/gsm8k", batch=64)
    rollouts = rl.rollout(policy, prompts, samples=samples)
    rewards = rl.verify(rollouts, is_correct)
    advantages = rl.group_advantages(rewards)
    weights = rl.train(policy, rollouts, advantages)
    rl.sync(weights, into=policy)
"""
TRAIN = "rl.train(policy, rollouts, advantages)"
CPU = """
name = "laptop"

[[node_group]]
name = "cores"
device = "cpu"
nodes = 1
devices_per_node = 2
cpus = 2
memory_gb = 6
"""

CASES = {
    "wrong batch type": ("RG0101", "rewards", {TRAIN: "rl.train(policy, rollouts, rewards)"}),
    "branch on a value": (
        "RG0103",
        "rewards.values.mean() > 0.5",
        {"    advantages =": "    if rewards.values.mean() > 0.5:\n        pass\n    advantages ="},
    ),
    "never synced": ("RG0301", TRAIN, {"    rl.sync(weights, into=policy)\n": ""}),
    "no bound": ("RG0302", "None", {"into=policy": "into=policy, max_staleness=None"}),
    "delivered less often than allowed": (
        "RG0302",
        "4",
        {"into=policy": "into=policy, max_staleness=1, every=4"},
    ),
    "interrupted on policy": (
        "RG0307",
        "True",
        {"into=policy": "into=policy, interrupt=True"},
    ),
    "stale without behaviour": (
        "RG0303",
        'rl.GRPOLoss(old="current")',
        {
            TRAIN: f'{TRAIN[:-1]}, loss=rl.GRPOLoss(old="current"))',
            "into=policy": "into=policy, max_staleness=2",
        },
    ),
    "minibatch does not divide": ("RG0403", "100", {TRAIN: f"{TRAIN[:-1]}, minibatch=100)"}),
    "one sample": ("RG0204", "rl.group_advantages(rewards)", {"int = 8": "int = 1"}),
    "more devices pinned": (
        "RG0402",
        "rl.rollout(policy, prompts, samples=samples)",
        {"@rl.pipeline": '@rl.pipeline(pins={"rollout": "0-15"})'},
    ),
    "GPU memory": (
        "RG0401",
        "rl.rollout(policy, prompts, samples=samples)",
        {"Qwen/Qwen2.5-0.5B": "Qwen/Qwen2.5-72B"},
    ),
}


def edited(changes: dict[str, str]) -> str:
    text = START.lstrip()
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


def errors(folder: Path, text: str, cluster: str = CLUSTER) -> CompileError:
    (folder / "pipeline.py").write_text(text)
    (folder / "cluster.toml").write_text(cluster)
    with pytest.raises(CompileError) as raised:
        compile_pipeline(load_pipeline("pipeline.py")[0], "cluster.toml")
    return raised.value


def underlined(found: Diagnostic) -> str:
    span = found.span
    assert span is not None
    assert span.line == span.end_line
    return span.source[span.column - 1 : span.end_column - 1]


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, folder: Path, snapshot: SnapshotAssertion) -> None:
    code, caret, changes = CASES[name]
    error = errors(folder, edited(changes))
    (found,) = error.diagnostics
    assert found.code == code
    if code != "RG0401":  # which node lacks least is the cost model's to say
        assert underlined(found) == caret
    assert found.notes or code == "RG0204"
    assert found.help
    lines = str(error).splitlines()
    carets = next(line for line in lines if "^" in line)
    source = lines[lines.index(carets) - 1]
    assert source[carets.index("^") : carets.rindex("^") + 1] == underlined(found)
    if code != "RG0401":  # its figures change with the cost model
        assert str(error) == snapshot


def test_memory_of_processors_is_what_the_cluster_file_states(folder: Path) -> None:
    (found,) = errors(folder, edited({}), CPU).diagnostics
    assert found.code == "RG0401"
    assert any("a core by cluster.toml" in note for note in found.notes)
    assert any("weights" in note for note in found.notes)
    stated = [text for text in found.help if text.startswith("memory_gb")]
    assert stated
    assert "node group `cores`" in stated[0]


def test_a_suggested_mend_is_true(folder: Path) -> None:
    """Each help line that says `fits` does, when it is applied."""
    found = errors(folder, edited({}), CPU).diagnostics[0]
    fitting = [text for text in found.help if ": fits" in text]
    assert fitting
    pipeline = load_pipeline("pipeline.py")[0]
    for text in fitting:
        if amount := re.match(r"memory_gb = ([\d.]+) of", text):
            Path("cluster.toml").write_text(CPU.replace("= 6", f"= {amount[1]}"))
            assert compile_pipeline(pipeline, "cluster.toml").plan
        elif limit := re.match(r"max_tokens \d+ → (\d+) in", text):
            call = f"samples=samples, max_tokens={limit[1]}"
            Path("shorter.py").write_text(edited({"samples=samples": call}))
            Path("cluster.toml").write_text(CPU)
            assert compile_pipeline(load_pipeline("shorter.py")[0], "cluster.toml").plan
        else:
            assert " × " in text


def test_an_unknown_node_type_of_a_saved_graph(folder: Path) -> None:
    (folder / "pipeline.py").write_text(START)
    saved = graph_file.dumps(load_pipeline("pipeline.py")[0].build())
    loaded = graph_file.loads(
        saved.replace('"type": "group_advantages"', '"type": "group_advantage"')
    )
    with pytest.raises(CompileError) as raised:
        compile_pipeline(loaded, "8xH100")
    (found,) = raised.value.diagnostics
    assert found.code == "RG0501"
    assert "did you mean `group_advantages`?" in found.help
    assert found.notes == ("it is the type of node `group_advantages`",)


def test_independent_errors_are_reported_together(
    folder: Path, snapshot: SnapshotAssertion
) -> None:
    changes = {
        "int = 8": "int = 1",
        TRAIN: "rl.train(policy, prompts, advantages, epochs=0)",
    }
    error = errors(folder, edited(changes))
    assert {d.code for d in error.diagnostics} == {"RG0101", "RG0104", "RG0204"}
    assert str(error) == snapshot


@pytest.mark.parametrize(
    ("call", "caret"),
    [
        ('rl.rollout(policy, prompts, samples="8")', '"8"'),
        ("rl.rollout(policy, prompts, samples=8.5)", "8.5"),
        ('rl.rollout(policy, prompts, stop="end")', '"end"'),
        ("rl.rollout(policy, prompts, samples=True)", "True"),
        ("rl.rollout(policy, prompts, temperature=None)", "None"),
        ("rl.rollout(policy, [prompts])", "[prompts]"),
        ('rl.rollout("policy", prompts)', '"policy"'),
        ("rl.rollout(policy, prompts, samples=0)", "0"),
        ("rl.rollout(policy, prompts, top_p=2.0)", "2.0"),
        ("rl.rollout(policy, prompts, 8)", "rl.rollout(policy, prompts, 8)"),
        ("rl.rollout(prompts=prompts, policy=None)", "None"),
    ],
)
def test_carets_stand_under_the_argument_at_fault(folder: Path, call: str, caret: str) -> None:
    old = "rl.rollout(policy, prompts, samples=samples)"
    found = errors(folder, edited({old: call})).diagnostics[0]
    assert found.code in ("RG0101", "RG0104")
    assert underlined(found) == caret


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("volume=lambda call: 3", "`volume` of node `odd` returned 3"),
        ("volume=lambda call: 1 / 0", "`volume` of node `odd` raised ZeroDivisionError"),
        ("work=lambda call: 'much'", "`work` of node `odd` returned 'much'"),
        ("check=lambda node, graph: 1 / 0", "`check` of node `odd` raised ZeroDivisionError"),
        ("check=lambda node, graph: ['bad']", "`check` of node `odd` returned ('bad',)"),
    ],
)
def test_what_a_node_says_of_itself_is_checked(folder: Path, setting: str, said: str) -> None:
    declared = f"@rl.node({setting})\ndef odd(rewards: rl.Rewards) -> rl.Rewards: ...\n\n\n"
    text = edited({"@rl.pipeline": declared + "@rl.pipeline", "(rewards)": "(odd(rewards))"})
    found = errors(folder, text).diagnostics[0]
    assert found.code == "RG0509"
    assert found.message.startswith(said)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("yield prompts", "RG0108"),
        ("raise SystemExit(3)", "RG0109"),
        ("grpo.function()", "RG0109"),
        ("prompts.promts", "RG0109"),
        ("f'{rollouts.lengths:.1f}'", "RG0109"),
        ("first, second = weights", "RG0109"),
        ("weights + 1", "RG0109"),
        ("grpo()", "RG0108"),
        ("len(rollouts)", "RG0103"),
        ("float(rewards.values.mean())", "RG0103"),
        ("list(rollouts)", "RG0103"),
        ("rl.group_advantages(rewards.values)", "RG0101"),
        ("rl.group_advantages(rewards.replace(values=3))", "RG0101"),
        ("rl.group_advantages()", "RG0104"),
        ("rl.sync(weights, policy)", "RG0104"),
        ("rl.sync(None, into=policy)", "RG0102"),
        ("rl.sync(weights, into=policy.frozen())", "RG0105"),
        ("rl.train(policy, rollouts, advantages, loss=rl.GRPOLoss)", "RG0104"),
        ("rl.train(policy, rollouts, advantages, loss=rl.GRPOLoss(kl='a'))", "RG0104"),
        ("rl.train(policy, rollouts, advantages, optimizer=rl.AdamW(lr='1'))", "RG0104"),
        ("rl.verify(rollouts, 'is_correct')", "RG0104"),
        ("rl.rollout(policy, prompts, lengths=())", "RG0104"),
        ("rl.dataset(3)", "RG0104"),
        ("rl.rollout(rl.Model('x', head='vaule'), prompts)", "RG0104"),
        ("rl.rollout(rl.Model(None), prompts)", "RG0104"),
    ],
)
def test_misuse_in_a_pipeline_is_a_diagnostic(folder: Path, line: str, code: str) -> None:
    found = errors(folder, f"{edited({})}    {line}\n").diagnostics
    assert code in {d.code for d in found}
