"""A plan that an engine cannot carry out is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlinf_graph.cli.api import compile_pipeline, run_compiled
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.ir.diagnostic import CompileError

PLANS = Path(__file__).parents[1] / "plans"


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_tensor_parallelism_of_the_torch_engine_is_refused(backend: str, tmp_path: Path) -> None:
    pipeline, _ = load_pipeline(str(PLANS / "pipeline.py"))
    ready = compile_pipeline(pipeline, "2xH100", pins={"rollout": "tp 2"})
    with pytest.raises(CompileError) as raised:
        run_compiled(ready, iterations=1, folder=tmp_path, backend=backend)
    messages = {d.message for d in raised.value.diagnostics if d.code == "RG0503" and d.span}
    assert "engine `torch` cannot run `rollout policy` with tp 2" in messages
    assert len(messages) == len(raised.value.diagnostics)
    assert not list(tmp_path.iterdir())
