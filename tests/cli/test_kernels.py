import sys
from pathlib import Path

import pytest

from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_pipeline
from rlinf_graph.cli.main import main
from rlinf_graph.compiler.cost.kernels import Missing
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.served import Formats
from rlinf_graph.compiler.cost.silicon import Silicon
from rlinf_graph.compiler.explain import explain, render_text

PIPELINE = Path(__file__).parents[2] / "pipelines" / "grpo_gsm8k.py"


def test_measured_kernels_that_are_not_installed_are_refused_with_the_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Silicon, "installed", staticmethod(lambda: False))
    arguments = ["rlinf-graph", "compile", str(PIPELINE), "--cluster", "8xH100"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--kernels", "silicon"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "--kernels" in shown
    assert "rlinf-graph[silicon]" in " ".join(shown.split())


class Nothing:
    """A source without any table."""

    def table(self, layout: Layout, formats: Formats) -> Missing:
        return Missing("no tables of this model")


def test_explain_says_why_measured_kernels_were_not_used() -> None:
    pipeline, _ = load_pipeline(str(PIPELINE))
    text = render_text(explain(compile_pipeline(pipeline, "8xH100", kernels=Nothing())))
    said = " ".join(text.split())
    assert "rollout policy: not by measured kernels: no tables of this model" in said
    assert "logprobs reference: not by" not in said
