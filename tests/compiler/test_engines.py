"""Which engines a plan names: those the user does, else the best of those that are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.explain import explain, render_text
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.nodes.capabilities import Layout, Support, layout_refusal
from rlinf_graph.nodes.installed import Installed, Package, packages_of
from rlinf_graph.nodes.registry import capabilities_of, engine_names

DECODER = Path(__file__).parents[1] / "plans" / "decoder"
GRPO = """
from rlinf_graph import rl

policy = rl.Model({model!r}, weights="random"{engines})


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def grpo(samples: int = 8) -> None:
    prompts = rl.dataset("openai/gsm8k", batch=64)
    rollouts = rl.rollout(policy, prompts, samples=samples)
    advantages = rl.group_advantages(rl.verify(rollouts, is_correct))
    weights = rl.train(policy, rollouts, advantages, loss=rl.GRPOLoss(old={old!r}))
    rl.sync(weights, into=policy)
"""
Engines = dict[str, str]


def planned(folder: Path, cluster: str, engines: str = "", old: str = "behaviour", **how: object):
    file = folder / "grpo.py"
    model = str(DECODER) if "cpu" in cluster else "Qwen/Qwen2.5-0.5B"
    file.write_text(GRPO.format(model=model, engines=engines, old=old))
    return compile_pipeline(load_pipeline(str(file))[0], cluster, **how)  # type: ignore[arg-type]  of tests


def engines_of(compiled) -> Engines:
    return {name.split()[0]: s.engine for name, s in compiled.plan.nodes.items()}


def test_planning_for_gpus_imports_no_engine(tmp_path: Path) -> None:
    (tmp_path / "grpo.py").write_text(
        GRPO.format(model="Qwen/Qwen2.5-0.5B", engines="", old="behaviour")
    )
    code = (
        "import json, sys\n"
        "from rlinf_graph.cli.api import compile_pipeline\n"
        "from rlinf_graph.cli.loading import load_pipeline\n"
        "plan = compile_pipeline(load_pipeline(sys.argv[1])[0], '8xH100').plan\n"
        "engines = sorted({s.engine for s in plan.nodes.values()})\n"
        "print(json.dumps([engines, [m for m in sys.modules if '.' not in m]]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "grpo.py")]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout
    engines, loaded = json.loads(told)
    assert engines == ["megatron", "vllm"]
    assert not {"vllm", "megatron", "torch", "transformers", "ray"} & set(loaded)


def test_the_best_of_the_known_engines_is_taken_and_the_reason_told(tmp_path: Path) -> None:
    compiled = planned(tmp_path, "2xH100")
    assert engines_of(compiled) == {"rollout": "vllm", "train": "megatron"}
    text = render_text(explain(compiled))
    assert "vllm 3 (best of torch, vllm)" in text
    assert "megatron 2 (best of megatron, torch)" in text


def test_named_engines_are_taken_also_where_they_are_not_planned_with_unasked(
    tmp_path: Path,
) -> None:
    both = ', rollout="vllm", train="megatron"'
    assert engines_of(planned(tmp_path, "2xcpu")) == {"rollout": "torch", "train": "torch"}
    named = planned(tmp_path, "2xcpu", both)
    assert engines_of(named) == {"rollout": "vllm", "train": "megatron"}
    assert "vllm 3 (named)" in render_text(explain(named))
    pinned = planned(tmp_path, "2xcpu", pins={"rollout": "engine vllm"})
    assert engines_of(pinned) == {"rollout": "vllm", "train": "torch"}
    asked = planned(tmp_path, "2xcpu", parameters={"rollout": "vllm", "train": "megatron"})
    assert engines_of(asked) == engines_of(named)


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        (', rollout="vlm"', "there is no engine `vlm`, which `policy` names for rollout"),
        (', train="vllm"', "`vllm`, the train engine of `policy`, does not train"),
        (', rollout="megatron"', "`megatron`, the rollout engine of `policy`, does not generate"),
    ],
)
def test_a_name_that_does_not_fit_is_told(engines: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError) as raised:
        planned(tmp_path, "2xH100", engines)
    (diagnostic,) = raised.value.diagnostics
    assert (diagnostic.code, diagnostic.message) == ("RG0513", said)
    assert diagnostic.help


def test_what_is_missing_is_told_with_the_line_that_installs_it(tmp_path: Path) -> None:
    """An interpreter that has nothing stands for an environment without the engine."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(CompileError) as raised:
        planned(tmp_path, "2xH100", ', rollout="vllm"', runnable=True, pythons={"vllm": str(bare)})
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.code == "RG0513"
    assert f"cannot start: vllm <0.33,>=0.32 is not installed in {bare}" in diagnostic.message
    assert 'pip install "rlinf-graph[vllm]"' in diagnostic.help
    assert not Installed((("torch", str(bare)),)).has("torch", "cpu")
    with pytest.raises(CompileError, match=r"RG0513.*does not say what is installed"):
        Installed((("torch", str(tmp_path / "absent")),)).has("torch", "cpu")


def test_one_process_hosts_no_engine_that_needs_some_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"RG0513.*needs processes of its own"):
        planned(tmp_path, "2xcpu", ', train="megatron"', runnable=True, own=True)
    assert not Installed(own=True).has("megatron", "gpu")
    assert Installed(own=True).has("torch", "gpu")


def test_versions_decide() -> None:
    assert Package("a", ">=0.32,<0.33", "0.32.1").fits
    assert Package("a", ">=0.32,<0.33", "0.32.0+cpu").fits
    assert not Package("a", ">=0.32,<0.33", "0.33").fits
    assert str(Package("a", "==1", "2")) == "a 2 is installed, ==1 is needed"
    found = packages_of(Support(axes=(), packages=("torch>=2", "no-such-thing==1")))
    assert [package.fits for package in found] == [True, False]
    assert Installed().has("torch", "cpu")


def test_every_known_engine_says_what_it_can_do() -> None:
    for name in engine_names():
        does = capabilities_of(name)
        assert does.name == name
        assert does.kinds
        assert all(support.packages and support.install for support in does.kinds.values())


@pytest.mark.parametrize(
    ("parallel", "tied", "mixture", "said"),
    [
        ({"tp": 2}, False, False, None),
        ({"pp": 2}, False, False, None),
        ({"pp": 2}, True, False, "pp 2 with tied embeddings"),
        ({"tp": 2}, False, True, "tp 2 with a mixture of experts"),
        ({"tp": 2, "pp": 2}, False, False, "tp 2 with pp 2"),
        ({"cp": 2}, False, False, "cp 2"),
        ({"dp": 2, "shard": "fsdp"}, False, False, "fsdp 2"),
    ],
)
def test_layouts_are_refused_with_their_reason(
    parallel: dict[str, object], tied: bool, mixture: bool, said: str | None
) -> None:
    support = Support(axes=("dp", "tp", "pp"), apart=(("tp", "pp"),), untied=("pp",), dense=("tp",))
    layout = Layout(NodePlan(parallel=Parallel.model_validate(parallel)), tied, mixture)
    refusal = layout_refusal(support, layout)
    assert refusal == (None if said is None else f"it cannot do {said}")


def test_another_engine_needs_the_behaviour_log_probabilities(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as raised:
        planned(tmp_path, "2xH100", old="current")
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.code == "RG0306"
    assert "vllm samples and megatron trains" in diagnostic.message
    same = ', rollout="torch", train="torch"'
    assert engines_of(planned(tmp_path, "2xH100", same, old="current")) == {
        "rollout": "torch",
        "train": "torch",
    }
