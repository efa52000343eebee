"""Modules that are pickled whole while somebody needs it, and as before afterwards."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from ray import cloudpickle

from rlinf_graph.backends.ray.shipping import whole
from rlinf_graph.cli.loading import load_module


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    file = tmp_path / "of_a_user.py"
    file.write_text("def double(x):\n    return 2 * x\n")
    made = load_module(file)
    yield made
    sys.modules.pop(made.__name__, None)


def travels(module: ModuleType) -> bool:
    """Whether its function can be read where the module is not."""
    made = cloudpickle.dumps(module.double)
    held = sys.modules.pop(module.__name__)
    try:
        return pickle.loads(made)(4) == 8
    except ImportError:
        return False
    finally:
        sys.modules[module.__name__] = held


def test_blocks_may_overlap(module: ModuleType) -> None:
    assert not travels(module)
    first, second = whole([module]), whole([module])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert travels(module)
    second.__exit__(None, None, None)
    assert not travels(module)


def test_what_a_user_has_registered_stays(module: ModuleType) -> None:
    cloudpickle.register_pickle_by_value(module)
    try:
        with whole([module]):
            assert travels(module)
        assert travels(module)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_installed_modules_are_named() -> None:
    with whole([pickle, pytest]):
        assert not {"pickle", "pytest"} & cloudpickle.list_registry_pickle_by_value()
