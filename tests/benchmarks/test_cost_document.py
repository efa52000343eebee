"""docs/cost-model.md and the constants say what the last run of the benchmark gave."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.fitted import parameters

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGE = ROOT / "docs" / "cost-model.md"
PLOTS = ("cost-model-predicted.svg", "cost-model-errors.svg")
SECTIONS = ("summary", "constants", "models", "pairs", "weakest", "left out")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads((BENCHMARKS / "results" / "cost_model.json").read_text("utf-8"))


@pytest.fixture
def document(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cost_document

    return cost_document


def test_the_page_is_what_the_results_give(document: ModuleType, tmp_path: Path) -> None:
    """Sections are filled in anew from empty ones; plots come out the same twice."""
    empty = PAGE.read_text("utf-8")
    for name in SECTIONS:
        empty, count = re.subn(
            rf"(<!-- {name} -->).*?(<!-- end of {name} -->)", r"\1\2", empty, flags=re.DOTALL
        )
        assert count == 1
    page = tmp_path / PAGE.name
    made: list[list[bytes]] = []
    for _ in range(2):
        page.write_text(empty, "utf-8")
        document.main([str(BENCHMARKS / "results" / "cost_model.json"), str(page)])
        made.append([(tmp_path / name).read_bytes() for name in PLOTS])
    assert page.read_text("utf-8") == PAGE.read_text("utf-8")
    assert made[0] == made[1]


def test_a_section_that_is_missing_is_named(document: ModuleType) -> None:
    with pytest.raises(SystemExit, match="0 sections summary"):
        document.section("a page", "summary", [])


@pytest.mark.parametrize("name", PLOTS)
def test_the_plots_are_beside_the_page_and_shown(name: str) -> None:
    path = PAGE.parent / name
    assert 10_000 < path.stat().st_size < 300_000
    assert f"]({name})" in PAGE.read_text("utf-8")


def test_the_shipped_constants_are_those_of_the_results(results: dict[str, Any]) -> None:
    shipped = CONSTANTS["gpu"]
    for kind, made in (
        ("rl_steps", shipped.iteration),
        ("training", shipped.passes),
        ("decode", shipped.decoding),
    ):
        known = {one["name"]: one["shipped"] for one in results[kind]["constants"]}
        assert known == {one.name: one.value for one in parameters(made)}


def test_the_widths_are_those_of_models_that_were_left_out(results: dict[str, Any]) -> None:
    widths = CONSTANTS["gpu"].widths
    for kind, width in (
        ("decode", widths.sampling),
        ("training", widths.passes),
        ("rl_steps", widths.iteration),
    ):
        assert width == pytest.approx(results[kind]["leave_one_model_out"]["half_width"], rel=0.02)
    pairs = results["rl_steps"]["leave_one_model_out"]["pairs"]
    assert widths.compared == pytest.approx(pairs["median_off"], rel=0.02)


def test_the_width_of_memory_is_that_of_the_results(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from validation.memory import WIDTH

    assert pytest.approx(results["memory"]["half_width"], rel=0.02) == WIDTH
