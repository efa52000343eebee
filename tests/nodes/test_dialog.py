"""Dialogs begin empty, calls are answered, and what ends a dialog ends it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from rlinf_graph import rl
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.dsl.pipeline import Pipeline
from rlinf_graph.ir import packed
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph_file import dumps, loads
from rlinf_graph.ir.value import FunctionRef
from rlinf_graph.nodes.execution import Execution
from rlinf_graph.nodes.sandbox import Sandbox
from tests.nodes.sandboxes import template_for_any

policy = rl.Model("decoder", weights="random")


def double(argument: str) -> str:
    return str(2 * int(argument))


def prompts(count: int = 2, first: int = 5) -> rl.Prompts:
    index = torch.arange(first, first + count)
    return rl.Prompts(
        index=index,
        group=index,
        prompts=[f"question {i}" for i in index.tolist()],
        columns=[{"truth": str(i)} for i in index.tolist()],
    )


def spoken(*responses: str, done: tuple[bool, ...] = ()) -> rl.Dialogs:
    """Dialogs in which the policy has said this, as three tokens each."""
    begun = rl.open_dialogs(prompts(len(responses)))
    count, size = len(responses), 3 * len(responses)
    return begun.replace(
        lengths=torch.full((count,), 3),
        tokens=torch.arange(size),
        mask=torch.ones(size, dtype=torch.bool),
        logprobs=torch.full((size,), -0.5, dtype=torch.float64),
        versions=torch.zeros(size, dtype=torch.int64),
        finished=torch.ones(count, dtype=torch.bool),
        turns=torch.ones(count, dtype=torch.int64),
        responses=list(responses),
        done=torch.tensor(done or [False] * count),
    )


def test_dialogs_begin_with_nothing_said() -> None:
    begun = rl.open_dialogs(prompts(), samples=3)
    assert begun.index.tolist() == [15, 16, 17, 18, 19, 20]
    assert begun.group.tolist() == [5, 5, 5, 6, 6, 6]
    assert begun.prompts == ["question 5"] * 3 + ["question 6"] * 3
    assert begun.columns[3] == {"truth": "6"}
    assert begun.lengths.tolist() == begun.turns.tolist() == [0] * 6
    assert not begun.done.any()
    assert not begun.finished.any()
    assert begun.answers == begun.responses == [""] * 6
    assert [len(t) for t in (begun.tokens, begun.mask, begun.logprobs, begun.versions)] == [0] * 4
    assert packed.select(begun, [4]).index.tolist() == [19]


def test_a_turn_with_a_call_is_answered_and_one_without_ends_the_dialog(running: Execution) -> None:
    said = spoken("<double>21</double>", "42", "<double>one</double>", "<triple>3</triple>")
    made = rl.use_tools(said, {"double": double}, form="[{}]")
    assert made.done.tolist() == [False, True, False, False]
    assert made.answers[:2] == ["[42]", ""]
    assert made.answers[2].startswith("[ValueError: invalid literal")
    assert made.answers[3] == "[there is no tool triple; there are: double]"
    assert made.responses == said.responses
    assert torch.equal(made.tokens, said.tokens)
    emitted = running.metrics.values()
    assert emitted["tool/calls"] == 3
    assert emitted["tool/failed"] == 2
    assert emitted["tool/seconds"] >= 0


def test_what_a_model_thinks_is_no_call(running: Execution) -> None:
    said = spoken("<think>2 + 2</think><answer>4</answer>", "<think><double>2</double></think>")
    made = rl.use_tools(said, {"double": double})
    assert made.done.tolist() == [True, False]
    assert made.answers == ["", "4"]
    assert running.metrics.values()["tool/calls"] == 1


def test_a_failed_tool_may_end_the_dialog_without_an_answer(running: Execution) -> None:
    said = spoken("<double>one</double>", "<double>2</double>")
    made = rl.use_tools(said, {"double": double}, failure="end")
    assert made.done.tolist() == [True, False]
    assert made.finished.tolist() == [False, True]
    assert made.responses == ["", "<double>2</double>"]
    rewards = rl.verify(made, lambda answer: float(answer != ""))
    assert rewards.values.tolist() == [0.0, 1.0]


def test_calls_wait_side_by_side(running: Execution) -> None:
    meeting = threading.Barrier(3, timeout=20)

    def meet(argument: str) -> str:
        meeting.wait()
        return argument

    said = spoken(*(f"<meet>{i}</meet>" for i in range(3)))
    made = rl.use_tools(said, {"meet": meet}, parallel=3)
    assert made.answers == ["0", "1", "2"]
    assert running.metrics.values()["tool/failed"] == 0


def test_answers_are_cut_and_lose_their_last_line_break(running: Execution) -> None:
    made = rl.use_tools(spoken("<say>x</say>"), {"say": lambda _text: "12345\n"}, limit=4)
    assert made.answers == ["1234"]
    made = rl.use_tools(spoken("<say>x</say>"), {"say": lambda _text: "12\n"}, limit=4)
    assert made.answers == ["12"]


def test_done_dialogs_stay_as_they_are(running: Execution) -> None:
    made = rl.use_tools(spoken("<double>2</double>", done=(True,)), {"double": double})
    assert made.done.tolist() == [True]
    assert made.answers == [""]
    assert running.metrics.values()["tool/calls"] == 0


def test_no_dialogs_at_all(running: Execution) -> None:
    none = packed.select(spoken("42"), [])
    made = rl.use_tools(none, {"double": double})
    assert len(made) == 0
    assert made.done.dtype == torch.bool
    rl.grade(made, lambda answer: 1.0)
    assert "grade/score" not in running.metrics.values()


@pytest.mark.parametrize(
    ("failure", "done", "answer"), [("tell", False, "[stopped after 0.2 s]"), ("end", True, "")]
)
def test_a_program_that_loops_for_ever(
    running: Execution, failure: Any, done: bool, answer: str
) -> None:
    template_for_any()
    said = spoken("<python>while True: pass</python>", "<python>print(6 * 7)</python>")
    made = rl.use_tools(said, {"python": Sandbox(seconds=0.2)}, failure=failure)
    assert made.done.tolist() == [done, False]
    assert made.answers == [answer, "42"]
    rewards = rl.verify(made, lambda answer: float("print" in answer))
    assert rewards.values.tolist() == [0.0, 1.0]
    assert running.metrics.values()["tool/failed"] == 1


def test_grades_are_emitted(running: Execution) -> None:
    rl.grade(spoken("5", "5"), lambda answer, truth: float(answer == truth), name="exam")
    assert running.metrics.values() == {"exam/score": 0.5, "exam/cut_off": 0.0}


def conversation(tools: Mapping[str, Any], **options: Any) -> Pipeline:
    @rl.pipeline
    def exam() -> None:
        def turn(dialogs: rl.Dialogs) -> rl.Dialogs:
            return rl.use_tools(rl.reply(policy, dialogs), tools, **options)

        asked = rl.dataset("openai/gsm8k", batch=4)
        start = rl.open_dialogs(asked, samples=2)
        rl.grade(rl.unroll(turn, start=start, length=3, until="done"), double_is_right)

    return exam


def double_is_right(answer: str) -> float:
    return float(answer == "42")


def test_tools_are_written_to_a_file_and_read_again() -> None:
    graph = run_passes(conversation({"double": double, "python": Sandbox(seconds=1.5)}).build())
    tools = graph.node("use_tools").option("tools")
    assert tools["double"] == FunctionRef.of(double)
    read = loads(dumps(graph)).node("use_tools").option("tools")
    assert read == tools
    assert read["python"] == Sandbox(seconds=1.5)


@pytest.mark.parametrize(
    ("tools", "options", "message"),
    [
        ({}, {}, "`tools` of `use_tools` are []; each needs a name"),
        ({"one": 1, "two": object()}, {}, "option `tools` of `call_tools`: object"),
        ({"double": double}, {"form": "answer"}, "shows no answer"),
        ({"double": double}, {"call": "("}, "is no regular expression"),
        ({"double": double}, {"call": "x"}, "has no group `tool`"),
        ({"double": double}, {"limit": 0}, "it has to be at least 1"),
        ({"double": double}, {"failure": "ask"}, "takes Literal['tell', 'end'], not 'ask'"),
        ([double], {}, "`tools` of `call_tools` takes collections.abc.Mapping[str"),
    ],
)
def test_what_cannot_be_is_reported_before_anything_runs(
    tools: Any, options: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(CompileError) as raised:
        run_passes(conversation(tools, **options).build())
    (found,) = raised.value.diagnostics
    assert found.code == "RG0104"
    assert message in found.message
    assert found.span is not None
    assert "use_tools" in found.span.source


def test_a_tool_that_is_none_is_reported_when_it_is_called(running: Execution) -> None:
    with pytest.raises(CompileError, match="RG0104"):
        rl.use_tools(spoken("<one>1</one>"), {"one": 1})  # type: ignore[dict-item]  the point
