import sys
from pathlib import Path

import pytest

from rlinf_graph.cli.main import main
from rlinf_graph.compiler.cost.silicon import Silicon

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
