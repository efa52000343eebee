"""A plan that an engine cannot carry out is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.backends.capable import check_engines
from rlinf_graph.cli.api import compile_pipeline, run_compiled
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.plan import Parallel

PLANS = Path(__file__).parents[1] / "plans"


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_tensor_parallelism_of_the_torch_engine_is_refused(backend: str, tmp_path: Path) -> None:
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    plan = compile_pipeline(pipeline, "2xH100", pins={"rollout": "tp 2"}).plan
    torch = {n: s.model_copy(update={"engine": "torch"}) for n, s in plan.nodes.items()}
    changed = plan.model_copy(update={"nodes": torch})
    ready = compile_pipeline(pipeline, "2xH100", plan=changed)
    with pytest.raises(CompileError) as raised:
        run_compiled(ready, iterations=1, folder=tmp_path, backend=backend)
    messages = {d.message for d in raised.value.diagnostics if d.code == "RG0513" and d.span}
    assert "engine `torch` cannot run `rollout policy` as planned: it cannot do tp 2" in messages
    assert len(messages) == len(raised.value.diagnostics)
    assert not list(tmp_path.iterdir())


def test_a_plan_for_an_engine_that_is_not_there_is_refused_and_run_makes_another(
    tmp_path: Path,
) -> None:
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    ready = compile_pipeline(pipeline, "2xH100", pins={"rollout": "engine vllm"})
    others = {"rollout policy": ready.plan.settings("rollout policy")}
    absent = {n: s.model_copy(update={"engine": "nothing"}) for n, s in others.items()}
    changed = ready.plan.model_copy(update={"nodes": {**ready.plan.nodes, **absent}})
    given = compile_pipeline(pipeline, "2xH100", plan=changed)
    with pytest.raises(
        CompileError, match="no engine `nothing`, which the plan names for `rollout policy`"
    ):
        run_compiled(given, iterations=1, folder=tmp_path)
    able = compile_pipeline(pipeline, "2xcpu", runnable=True).plan
    assert {settings.engine for settings in able.nodes.values()} == {"torch"}


@pytest.mark.parametrize(
    ("layout", "change", "said"),
    [
        ({"vp": 2}, {}, "it cannot do vp 2"),
        ({"dp": 2, "shard": "optimizer"}, {}, "it cannot do optimizer 2"),
        ({}, {"recompute": "selective"}, "it cannot recompute selectively"),
    ],
)
def test_what_only_other_trainers_do_is_refused(
    layout: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    ready = compile_pipeline(pipeline, "2xcpu")
    changed = {
        name: settings.model_copy(update={"parallel": Parallel(**layout), **change})
        for name, settings in ready.plan.nodes.items()
        if name.startswith("train")
    }
    plan = ready.plan.model_copy(update={"nodes": {**ready.plan.nodes, **changed}})
    with pytest.raises(CompileError, match=f"RG0513.*as planned: {said}"):
        check_engines(ready.graph, plan, ready.cluster)
