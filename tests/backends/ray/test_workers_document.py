"""docs/workers.md shows what happens."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from rlinf_graph.backends.ray.run import Seat

DOCUMENT = Path(__file__).parents[3] / "docs" / "workers.md"

pytestmark = pytest.mark.timeout(120)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def test_the_pair_does_what_is_shown(
    seats: dict[int, Seat], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In a module that the workers cannot import."""
    file = tmp_path / "pair.py"
    file.write_text("\n".join(blocks("python")))
    spec = importlib.util.spec_from_file_location("pair", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pair", module)
    spec.loader.exec_module(module)
    module.main()
    assert module.settings["cpu"].python == "nice python3"
    (shown,) = blocks("console")
    assert shown.split("\n", 1)[1] == capsys.readouterr().out
