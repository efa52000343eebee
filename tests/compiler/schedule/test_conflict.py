"""The smallest set of pins that contradicts itself."""

from __future__ import annotations

import pytest

from rlinf_graph.compiler.schedule.conflict import smallest_conflict
from rlinf_graph.compiler.schedule.pins import Pin, Pins
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from tests.compiler.schedule.test_search import compile_graph, grpo

FIVE = Pins({name: Pin(tp=1) for name in "abcde"})


@pytest.mark.parametrize("culprits", ["c", "bd", "abe", "abcd", "abcde"])
def test_as_few_as_contradict_each_other(culprits: str) -> None:
    asked: list[frozenset[str]] = []

    def possible(pins: Pins) -> bool:
        asked.append(frozenset(pins.names()))
        return not set(culprits) <= set(pins.names())

    assert smallest_conflict(FIVE, possible) == set(culprits)
    assert asked[0] == frozenset()


def test_nothing_where_pins_are_not_the_reason() -> None:
    assert smallest_conflict(FIVE, lambda _pins: False) == frozenset()


def test_the_error_names_them_and_no_others() -> None:
    pins = {"rollout": "0-3", "logprobs": "tp 1", "train": "0-7 dp 3"}
    with pytest.raises(CompileError) as raised:
        compile_graph(grpo(64, 8, 512, 1, 1e-3), load_cluster("8xH100"), pins=pins)
    (found,) = raised.value.diagnostics
    assert "keeps the pin of `train policy`" in found.message
    assert found.notes[0] == "`train policy` is pinned to 0-7 dp 3"
