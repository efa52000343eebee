"""docs/workers.md shows what happens."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlinf_graph.backends.ray.run import Seat

DOCUMENT = Path(__file__).parents[3] / "docs" / "workers.md"

pytestmark = pytest.mark.timeout(120)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def scripts() -> list[str]:
    """The blocks that can be run, each with those after it that it is not one with."""
    found: list[str] = []
    for block in blocks("python"):
        if "__main__" in block:
            found.append(block)
        else:
            found[-1] += block
    return found


def shown(number: int) -> str:
    return blocks("console")[number].split("\n", 1)[1]


@pytest.fixture
def script(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """In a module that the workers cannot import."""
    number: int = request.param
    file = tmp_path / f"script{number}.py"
    file.write_text(scripts()[number])
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", [0], indirect=True)
def test_the_pair_does_what_is_shown(
    script: ModuleType, seats: dict[int, Seat], capsys: pytest.CaptureFixture[str]
) -> None:
    script.main()
    assert script.settings["cpu"].python == "nice python3"
    assert capsys.readouterr().out == shown(0)


@pytest.mark.parametrize("script", [1], indirect=True)
def test_the_stream_does_what_is_shown(
    script: ModuleType, seats: dict[int, Seat], capsys: pytest.CaptureFixture[str]
) -> None:
    script.stream()
    assert capsys.readouterr().out == shown(1)
