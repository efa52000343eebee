"""Measured kernels in place of the roofline: a made-up source, and the package of the extra."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pytest

from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.kernels import MEASURED, Missing, Surface
from rlinf_graph.compiler.cost.silicon import INSTALL, PACKAGE, Silicon
from rlinf_graph.ir.work import Generate, Lengths, Speculative

FIXED = Lengths.fixed(1000, "declared")
ROLLOUT = Generate(64, 0, FIXED)
installed = pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"no {PACKAGE}: {INSTALL}")


@dataclass(frozen=True)
class Straight:
    """A step costs 2 ms and what the product of batch and context says; a prompt's token 1 us."""

    each: float = 1e-8

    def decode(self, batch: int, context: int) -> float:
        return 2e-3 + self.each * batch * context

    def prefill(self, prompts: int, tokens: int) -> float:
        return 1e-6 * prompts * tokens


@dataclass
class Source:
    """One answer for every layout; counts the questions."""

    answer: Surface | Missing
    asked: int = 0

    def table(self, layout, formats) -> Surface | Missing:
        self.asked += 1
        return self.answer


def cost(made, kernels):
    costs = CostModel(made.costs.graph, made.costs.cluster, kernels=kernels)
    return costs.node(made.node, made.devices, made.settings)


def test_a_surface_goes_through_its_points_and_between_them() -> None:
    surface = Surface(Straight())
    batch, context = np.asarray([64.0, 96.0, 0.0]), np.asarray([1024.0, 3000.0, 100.0])
    found = surface.decode(batch, context)
    assert found[0] == pytest.approx(Straight().decode(64, 1024))
    assert found[1] == pytest.approx(Straight().decode(96, 3000), rel=0.05)
    assert found[2] == 0


def test_a_surface_grows_beyond_its_last_point() -> None:
    surface = Surface(Straight(each=1e-6))
    far, farther = surface.decode(np.asarray([64.0, 64.0]), np.asarray([1e5, 4e5]))
    assert farther == pytest.approx(4 * far, rel=0.05)


def test_prompts_are_read_in_batches() -> None:
    surface = Surface(Straight())
    assert surface.prefill(8192, 1000) == pytest.approx(8192e-6)
    assert surface.prefill(0, 1000) == 0


def test_steps_take_what_was_measured(case) -> None:
    made = case(ROLLOUT, engine="vllm")
    measured = cost(made, Source(Surface(Straight())))
    assert measured.origin == MEASURED
    step = Straight().decode(64, 500)
    assert dict(measured.parts)["decode"] == pytest.approx(1000 * step, rel=0.05)
    assert made.cost().origin == "roofline"


def test_a_table_is_asked_for_a_point_once(case) -> None:
    asked: list[tuple[int, int]] = []

    class Counted(Straight):
        def decode(self, batch: int, context: int) -> float:
            asked.append((batch, context))
            return super().decode(batch, context)

    source = Source(Surface(Counted()))
    for samples in (64, 65, 640):
        cost(case(Generate(samples, 0, FIXED), engine="vllm"), source)
    assert source.asked >= 3
    assert len(asked) == len(set(asked)) > 0


def test_what_is_missing_falls_back_to_the_roofline_and_says_why(case) -> None:
    made = case(ROLLOUT, engine="vllm")
    without = cost(made, Source(Missing("no tables of this model")))
    assert without.origin == "roofline"
    assert without.fallback == "no tables of this model"
    assert without.seconds == made.seconds


def test_drafted_tokens_are_not_in_the_tables(case) -> None:
    work = Generate(64, 0, FIXED, 1, Speculative(4, 0.8))
    found = cost(case(work, engine="vllm"), Source(Surface(Straight())))
    assert (found.origin, found.fallback[:9]) == ("roofline", "no tables")


@pytest.mark.skipif(find_spec(PACKAGE) is not None, reason=f"{PACKAGE} is installed")
def test_without_the_extra_its_name_is_said(case) -> None:
    found = cost(case(ROLLOUT, engine="vllm"), Silicon())
    assert found.origin == "roofline"
    assert found.fallback == f"{PACKAGE} is not installed: {INSTALL}"


@pytest.mark.silicon
@installed
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", {}),
        ("Qwen/Qwen3-32B", {"tp": 4}),
        ("Qwen/Qwen3-30B-A3B", {"dp": 4, "ep": 4}),
    ],
)
def test_tables_and_roofline_are_of_one_order(case, model: str, settings) -> None:
    made = case(Generate(512, 1000, FIXED), model=model, engine="vllm", **settings)
    measured = cost(made, Silicon())
    assert measured.origin == MEASURED
    assert measured.seconds == pytest.approx(made.seconds, rel=0.4)


@pytest.mark.silicon
@installed
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "Qwen/Qwen2.5-7B"}, "no tables of this model"),
        ({"cluster": "8xH20"}, "no tables of H20"),
        ({"engine": "torch"}, "no tables of the engine torch"),
        ({"model": "Qwen/Qwen3-8B", "pp": 2}, "no tables of pipeline stages"),
        ({"model": "Qwen/Qwen3-8B", "dtype": "float32"}, "no tables of float32"),
    ],
)
def test_layouts_without_tables_say_why(case, settings, reason: str) -> None:
    made = case(ROLLOUT, **({"engine": "vllm"} | settings))
    found = cost(made, Silicon())
    assert (found.origin, found.fallback) == ("roofline", reason)
    assert found.seconds == made.seconds
