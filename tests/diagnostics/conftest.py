from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlinf_graph.dsl.node import definitions
from rlinf_graph.nodes.plugins import load_plugins

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def built_in_nodes() -> Iterator[None]:
    """Messages name the node types that are known: here those of the package only."""
    load_plugins()
    before = dict(definitions)
    for name in [name for name, known in before.items() if not known.built_in]:
        del definitions[name]
    yield
    definitions.clear()
    definitions.update(before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the demonstration's data."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path
