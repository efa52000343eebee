"""Let tools answer what a policy asks of them in a dialog."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir.batches import Dialogs
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Unit
from rlinf_graph.ir.value import freeze
from rlinf_graph.ir.work import HostWork
from rlinf_graph.nodes.dialog import at_least
from rlinf_graph.nodes.execution import metric
from rlinf_graph.nodes.tools import CALL, Answer, Tool, call_pattern, call_tool, parse_call
from rlinf_graph.nodes.tools import Call as ToolCall

SECONDS_PER_CALL = 5e-3
"""Of one core, to execute a short program in a sandbox; assumed where the user declares nothing."""

NO_CALLS = ("think", "answer")
"""Elements that models write for themselves, and that look like calls: no unknown tools."""


def _tools_check(node: Node, _graph: Graph) -> Iterator[Diagnostic]:
    """There are tools, with names; calls can be found, and answers shown."""
    yield from at_least(node, {"limit": 1, "parallel": 1})
    names: list[object] = list(node.option("tools"))
    if not names or not all(isinstance(name, str) and name for name in names):
        message = f"`tools` of `{node.name}` are {names}; each needs a name"
        yield Diagnostic("RG0104", message, node.at("tools"), help=('{"python": rl.Sandbox()}',))
    if "{}" not in node.option("form"):
        message = f"`form` of `{node.name}` is {node.option('form')!r}, which shows no answer"
        help_text = ('form="<result>{}</result>"',)
        yield Diagnostic("RG0104", message, node.at("form"), help=help_text)
    try:
        call_pattern(node.option("call"))
    except CompileError as error:
        for found in error.diagnostics:
            yield Diagnostic(found.code, found.message, node.at("call"), help=found.help)


def _tools_work(call: Call) -> HostWork:
    declared = call.options["seconds"]
    origin = "declared default" if declared is None else "declared"
    each = SECONDS_PER_CALL if declared is None else declared
    return HostWork(call.first.samples, each, origin)


@node(label="use_tools", unit=Unit.SAMPLE, work=_tools_work, check=_tools_check)
def call_tools(
    dialogs: Dialogs,
    tools: Mapping[str, Tool],
    *,
    call: str = CALL,
    form: str = "{}",
    limit: int = 2000,
    failure: Literal["tell", "end"] = "tell",
    parallel: int = 8,
    seconds: float | None = None,  # noqa: ARG001  read when planning
) -> Dialogs:
    """Answer the calls in what a policy said last; a turn without a call ends its dialog."""
    done = list(map(bool, dialogs.done.tolist()))
    finished = list(map(bool, dialogs.finished.tolist()))
    answers, responses = list(dialogs.answers), list(dialogs.responses)
    asked = {
        row: found
        for row, text in enumerate(responses)
        if not done[row] and (found := _call_in(text, call, tools)) is not None
    }
    done = [was or row not in asked for row, was in enumerate(done)]
    said = _asked_together(asked, tools, parallel)
    for row, answer in said.items():
        answers[row] = form.replace("{}", answer.text.rstrip()[:limit])
        if failure == "end" and not answer.ok:
            done[row], finished[row], responses[row], answers[row] = True, False, "", ""
    metric("tool/calls", float(len(said)), reduce="sum")
    metric("tool/failed", float(sum(not answer.ok for answer in said.values())), reduce="sum")
    return dialogs.replace(
        done=dialogs.done.new_tensor(done),
        finished=dialogs.finished.new_tensor(finished),
        answers=answers,
        responses=responses,
    )


def use_tools(
    dialogs: Dialogs,
    tools: Mapping[str, Tool],
    *,
    call: str = CALL,
    form: str = "{}",
    limit: int = 2000,
    failure: Literal["tell", "end"] = "tell",
    parallel: int = 8,
    seconds: float | None = None,
) -> Dialogs:
    """Answer the calls in what a policy said last; a turn without a call ends its dialog.

    The first call of a turn is answered; what the policy reads of it next is not its own, so it is
    not trained on. Emits `tool/calls` and `tool/failed`, their numbers, and `tool/seconds`, of a
    call.

    Args:
        dialogs: `n` of them; those that are done stay as they are.
        tools: by name: a function from str to str, `rl.Sandbox()` or `rl.Http(url)`. A function is
            not stopped: what may not end belongs into a sandbox.
        call: a regular expression with groups `tool` and `argument`. A call of a tool that there is
            not is answered with the names of those that there are.
        form: how the policy is shown an answer, which takes the place of `{}`; with a chat template
            it is a message of its own, and needs no form.
        limit: characters of an answer that are shown.
        failure: of a tool: `tell` the policy what went wrong, or `end` the dialog, with an empty
            response for the verifier and `finished` false.
        parallel: calls at a time.
        seconds: what to plan with: of one core for each dialog; 5 ms are assumed.

    Raises:
        CompileError: RG0104, for what is no tool; RG0511, where programs cannot be isolated.
    """
    named = {name: freeze(tool) for name, tool in tools.items()} if _is_mapping(tools) else tools
    return call_tools(
        dialogs,
        named,
        call=call,
        form=form,
        limit=limit,
        failure=failure,
        parallel=parallel,
        seconds=seconds,
    )


def _is_mapping(tools: object) -> bool:
    """Users may not run a checker."""
    return isinstance(tools, Mapping)


def _call_in(text: str, pattern: str, tools: Mapping[str, Tool]) -> ToolCall | None:
    """The first call of a known tool, else that of another one that is none of `NO_CALLS`."""
    known = parse_call(text, pattern, tools)
    if known is not None:
        return known
    found = call_pattern(pattern).finditer(text)
    others = (m for m in found if m["tool"] and m["tool"] not in NO_CALLS)
    return next((ToolCall(m["tool"], m["argument"] or "") for m in others), None)


def _asked_together(
    calls: Mapping[int, ToolCall], tools: Mapping[str, Tool], parallel: int
) -> dict[int, Answer]:
    """The answers to calls, by row, several at a time."""

    def ask(call: ToolCall) -> tuple[Answer, float]:
        if call.tool not in tools:
            known = ", ".join(tools)
            return Answer(f"there is no tool {call.tool}; there are: {known}", ok=False), 0.0
        start = time.perf_counter()
        answer = call_tool(tools[call.tool], call.argument)
        return answer, time.perf_counter() - start

    if not calls:
        return {}
    with ThreadPoolExecutor(min(parallel, len(calls))) as pool:
        said = list(pool.map(ask, calls.values()))
    seconds = sum(taken for _answer, taken in said)
    metric("tool/seconds", seconds / len(said), weight=float(len(said)))
    return {row: answer for row, (answer, _taken) in zip(calls, said, strict=True)}
