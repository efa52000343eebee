"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.compiler.explain import explain, render_text
from rlinf_graph.compiler.explain.drawing import render_graph_svg
from rlinf_graph.ir.diagnostic import CompileError

README = Path(__file__).parents[1] / "README.md"
SEARCH_TIME = re.compile(r"(the rest by bound, )[<\d.]+ s")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_explained_plan_is_the_one_the_compiler_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(README.parent)
    pipeline, _ = load_pipeline("pipelines/grpo_gsm8k.py")
    text = render_text(explain(compile_pipeline(pipeline, "16xH100")))
    shown = blocks("console")[0].split("\n", 1)[1]
    assert SEARCH_TIME.sub(r"\1", shown).strip() == SEARCH_TIME.sub(r"\1", text).strip()


def test_the_example_compiles_and_the_error_is_the_one_it_gives(tmp_path: Path) -> None:
    source, embodied = blocks("python")
    (tmp_path / "ppo.py").write_text(embodied)
    compile_pipeline(load_pipeline(str(tmp_path / "ppo.py"))[0])
    file = tmp_path / "grpo.py"
    file.write_text(source)
    compile_pipeline(load_pipeline(str(file))[0], "16xH100")
    line = next(text for text in source.splitlines() if text.strip().startswith("rl.sync("))
    file.write_text(source.replace(line, ""))
    with pytest.raises(CompileError) as raised:
        compile_pipeline(load_pipeline(str(file))[0], "16xH100")
    shown = next(b for b in blocks("console") if b.startswith("error["))
    assert re.sub(r"\S*/grpo\.py", "grpo.py", str(raised.value)) == shown.strip()


def test_the_graph_that_is_shown_is_the_one_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(README.parent)
    pipeline, _ = load_pipeline("pipelines/ppo_cartpole.py")
    assert render_graph_svg(pipeline.build()) == Path("docs/ppo_cartpole.svg").read_text()
