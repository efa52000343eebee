"""Plans as files."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlinf_graph.ir import plan as plans
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.plan import (
    Leaf,
    NodePlan,
    Parallel,
    PipelineRef,
    Placement,
    Plan,
    Split,
    Turn,
    mode_of,
    parse_devices,
    show_devices,
)


@given(ids=st.lists(st.integers(0, 40), unique=True).map(sorted).map(tuple))
def test_device_sets_are_written_and_read(ids: tuple[int, ...]) -> None:
    assert parse_devices(show_devices(ids)) == ids


def test_device_sets_are_short() -> None:
    assert show_devices((0, 1, 2, 3, 6, 8, 9)) == "0-3,6,8-9"
    with pytest.raises(ValueError, match="no device range"):
        parse_devices("0..3")


def leaf(name: str, devices: str) -> Leaf:
    return Leaf(node=name, devices=parse_devices(devices))


TREE = Turn(parts=(Split(parts=(leaf("a", "0-1"), leaf("b", "2-3"))), leaf("c", "0-3")))


def plan() -> Plan:
    return Plan(
        pipeline=PipelineRef(file="p.py", name="p", parameters={"samples": 8}),
        placement=TREE,
        nodes={"a": NodePlan(parallel=Parallel(dp=2), chunks=4)},
    )


def test_a_plan_is_read_as_it_was_written() -> None:
    assert plans.loads(plans.dumps(plan())) == plan()


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("placement", "parts", 1, "devices"), "0-x", "no device range"),
        (("nodes", "a", "chunk"), 4, "nodes.a.chunk"),
        (("nodes", "a", "parallel", "dp"), 0, "greater than or equal to 1"),
        (("format",), 2, "format"),
        (("syncs",), {"sync": {"method": "teleport"}}, "copy"),
    ],
)
def test_wrong_edits_are_named(path: tuple[str | int, ...], value: object, says: str) -> None:
    data = json.loads(plans.dumps(plan()))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CompileError) as raised:
        plans.loads(json.dumps(data), "plan.json")
    assert [d.code for d in raised.value.diagnostics] == ["RG0601"]
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("placement", "mode"),
    [
        (leaf("a", "0-3"), "single"),
        (Turn(parts=(leaf("a", "0-3"), leaf("b", "0-3"))), "collocated"),
        (Split(parts=(leaf("a", "0"), leaf("b", "1"))), "disaggregated"),
        (
            Split(parts=(leaf("a", "0"), Turn(parts=(leaf("b", "1"), leaf("c", "1"))))),
            "disaggregated",
        ),
        (TREE, "hybrid"),
    ],
)
def test_modes(placement: Placement, mode: str) -> None:
    assert mode_of(placement) == mode


@pytest.mark.parametrize("recompute", [False, True, "selective"])
def test_recomputation_is_read_as_it_was_written(recompute: bool | Literal["selective"]) -> None:
    settings = NodePlan(recompute=recompute)
    assert NodePlan.model_validate_json(settings.model_dump_json()).recompute == recompute


def test_plans_from_before_virtual_stages_are_read() -> None:
    old = '{"parallel": {"dp": 2, "pp": 2, "shard": "fsdp"}, "recompute": true}'
    settings = NodePlan.model_validate_json(old)
    assert (settings.parallel.vp, settings.recompute) == (1, True)


@pytest.mark.parametrize(
    ("parallel", "shown"),
    [
        (Parallel(), "-"),
        (Parallel(dp=8), "dp 8"),
        (Parallel(dp=8, shard="fsdp"), "fsdp 8"),
        (Parallel(dp=4, tp=2), "tp 2 × 4"),
        (Parallel(dp=2, tp=2, pp=2), "tp 2 pp 2 × 2"),
        (Parallel(dp=2, pp=2, vp=4), "pp 2 vp 4 × 2"),
    ],
)
def test_layouts_are_shown_shortly(parallel: Parallel, shown: str) -> None:
    assert str(parallel) == shown
