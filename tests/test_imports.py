"""The rule of imports: the contracts in pyproject.toml, and what starting up may load."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

import rlinf_graph

ROOT = Path(__file__).parents[1]
LIGHT = ("rlinf_graph.ir", "rlinf_graph.dsl", "rlinf_graph.compiler")
STARTUP = (*LIGHT, "rlinf_graph.rl", "rlinf_graph.cli")
HEAVY = {"torch", "transformers", "ray", "vllm", "megatron", "datasets", "matplotlib", "pyarrow"}


def modules_under(packages: tuple[str, ...]) -> list[str]:
    found = pkgutil.walk_packages(rlinf_graph.__path__, "rlinf_graph.", onerror=lambda _: None)
    return [m.name for m in found if m.name.startswith(packages) and "__main__" not in m.name]


def test_contracts_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports("pyproject.toml", no_cache=True, no_logo=True) == 0


def test_ir_dsl_and_compiler_use_torch_only_in_annotations() -> None:
    graph = grimp.build_graph(
        "rlinf_graph",
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )
    importers = graph.find_modules_that_directly_import("torch") if "torch" in graph.modules else ()
    assert sorted(name for name in importers if name.startswith(LIGHT)) == []


def test_starting_up_loads_nothing_heavy() -> None:
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    command = [sys.executable, "-c", code, json.dumps(modules_under(STARTUP))]
    loaded = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert HEAVY.intersection(loaded) == set()
