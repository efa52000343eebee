"""Dialogs of several turns in one process: on any plan the same, down to no dialogs at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlinf_graph.backends.local import run as local
from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.cli.loading import load_module, load_pipeline
from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.sandbox import Sandbox
from rlinf_graph.nodes.tools import call_tool, parse_call
from tests.nodes.sandboxes import DEADLINE, template_for_any
from tests.plans.dialog import NEVER

ROOT = Path(__file__).parents[2]
PIPELINE = str(ROOT / "tests" / "plans" / "dialog.py")
Outcome = tuple[list[IterationRecord], dict[str, torch.Tensor]]


def prepared(cluster: str, pins: dict[str, str], **parameters: Any) -> Compiled:
    pipeline, _ = load_pipeline(f"{PIPELINE}:small_dialogs")
    return compile_pipeline(pipeline, cluster, pins=pins, parameters=parameters)


def carry_out(ready: Compiled) -> Outcome:
    """The records of two iterations, and the weights after them."""
    records: list[IterationRecord] = []
    done = local.run(
        ready.program, ready.graph, ready.plan, ready.cluster,
        iterations=2, seed=3, report=records.append,
    )  # fmt: skip
    records.sort(key=lambda record: record.iteration)
    trainer = done.machine.trainers(ready.program.group("train policy"))[0]
    return records, {k: v.detach().clone() for k, v in trainer.weights().items()}


@pytest.fixture(scope="module")
def reference() -> Outcome:
    return carry_out(prepared("1xcpu", {}))


@pytest.mark.parametrize(
    "pins", [{"reply": "0", "train": "1"}, {"reply": "0-1", "train": "0-1"}], ids=["apart", "both"]
)
def test_every_plan_gives_the_dialogs_and_weights_of_one_device(
    reference: Outcome, pins: dict[str, str]
) -> None:
    records, weights = carry_out(prepared("2xcpu", pins))
    for mine, theirs in zip(records, reference[0], strict=True):
        assert mine.samples == theirs.samples
        assert mine.metrics["tool/calls"] == theirs.metrics["tool/calls"]
    worst = max(float((weights[k] - v).abs().max()) for k, v in reference[1].items())
    assert worst <= 1e-9


def test_dialogs_of_one_turn_and_of_more(reference: Outcome) -> None:
    """Otherwise the comparison above would hold of anything."""
    for record in reference[0]:
        assert [sample["index"] for sample in record.samples] == list(range(32))
        assert {sample["version"] for sample in record.samples} == {record.iteration}
        assert 0 < record.metrics["tool/failed"] < record.metrics["tool/calls"] < 32
        assert record.metrics["train/grad_norm"] > 0
        assert record.metrics["dialog/tokens_max"] > 7 + 6 + 2


def test_all_dialogs_end_in_the_first_of_three_turns() -> None:
    records, _weights = carry_out(prepared("2xcpu", {}, call=NEVER))
    for record in records:
        assert len(record.samples) == 32
        assert record.metrics["tool/calls"] == 0
        assert record.metrics["dialog/tokens_max"] <= 7 + 6
        assert record.metrics["train/grad_norm"] > 0


def test_dialogs_that_nothing_trains_on_or_grades_are_refused() -> None:
    pipeline, _ = load_pipeline(f"{PIPELINE}:spoken_only")
    with pytest.raises(CompileError, match="nothing in `spoken_only` trains or evaluates a model"):
        compile_pipeline(pipeline, "1xcpu")


def test_the_demonstrations_show_what_the_tools_answer() -> None:
    """Of each kind the first five with a call, as the pipeline's own tools answer it."""
    template_for_any()
    module = load_module(ROOT / "pipelines" / "tool_agent.py")
    lines = (ROOT / "demo" / "tool_agent" / "demonstrations.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    for kind in ("<calc>", "[::-1]", "sorted("):
        for prompt in [p for p in prompts if kind in p][:5]:
            call = parse_call(prompt, tools=module.TOOLS)
            assert call is not None
            tool = module.TOOLS[call.tool]
            if isinstance(tool, Sandbox):
                tool = replace(tool, seconds=DEADLINE)
            answer = call_tool(tool, call.argument)
            assert answer.ok
            assert prompt.endswith(f">[{answer.text.rstrip()}]")
    for wrong in ("2**9", "3.5+1", "print(1)", "1+", "__import__('os')"):
        assert not call_tool(module.calculate, wrong).ok
    assert call_tool(module.calculate, " -3*(4+5)-6 ").text == "-33"
