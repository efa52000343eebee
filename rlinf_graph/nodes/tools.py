"""Tools that a model may call in a dialog: a function, a sandbox for its programs, a server."""

from __future__ import annotations

import functools
import http.client
import json
import re
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, cast

from rlinf_graph.dsl.option import misfit
from rlinf_graph.ir.diagnostic import CompileError, fail
from rlinf_graph.ir.value import struct
from rlinf_graph.nodes.sandbox import Outcome, Sandbox, run_code
from rlinf_graph.nodes.verifier import definition_of, name_of

CALL = r"<(?P<tool>[A-Za-z_][\w-]*)>(?P<argument>.*?)</(?P=tool)>"
"""How a model calls a tool unless told otherwise: `<name>argument</name>`."""


@struct
class Http:
    """A tool that is a server: the argument is posted, the body of the response is the answer.

    A failed connection, a timeout and a status of 500 or more are tried again, others are not.

    Attributes:
        url: where to post to.
        seconds: until the response is complete, for each try.
        tries: how often to post at most.
        backoff: seconds before the second try; doubled before each further one.
        send: the argument as `json` (`{"argument": …}`) or as plain `text`, in UTF-8.
        output_bytes: what is kept of the response.
    """

    url: str
    seconds: float = 5.0
    tries: int = 3
    backoff: float = 0.25
    send: Literal["json", "text"] = "json"
    output_bytes: int = 10_000

    def __post_init__(self) -> None:
        """Refuse what is no address, and limits under which nothing can be posted.

        Raises:
            CompileError: RG0104.
        """
        if found := misfit(self):
            name, wanted, value = found
            raise fail("RG0104", f"Http: `{name}` is {value!r}", help=(f"it is a {wanted}",))
        address = urllib.parse.urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            message = f"Http: `url` is {self.url!r}, which is no address of a server"
            raise fail("RG0104", message, help=('Http("http://localhost:8000/search")',))
        least = {"seconds": 0.001, "tries": 1, "backoff": 0.0, "output_bytes": 1}
        for name, smallest in least.items():
            if not smallest <= getattr(self, name) < float("inf"):
                message = f"Http: `{name}` is {getattr(self, name)!r}"
                raise fail("RG0104", message, help=(f"it has to be at least {smallest}",))


Tool = Callable[[str], str] | Sandbox | Http
"""What `call_tool` takes."""


@dataclass(frozen=True)
class Answer:
    """What a tool says, and whether it did what it was asked."""

    text: str
    ok: bool


@dataclass(frozen=True)
class Call:
    """A tool's name and its argument, as a model wrote them."""

    tool: str
    argument: str


def call_tool(tool: Tool, argument: str) -> Answer:
    """Ask a tool.

    A failure is an answer with a short text for the model: an exception of a function, a program
    that fails or is stopped, a server that cannot be reached or refuses.

    Raises:
        CompileError: RG0104, for what is no tool and for a function that returns no text; RG0511,
            where a program cannot be isolated.
    """
    if isinstance(tool, Sandbox):
        return _executed(tool, run_code(tool, textwrap.dedent(argument).strip()))
    if isinstance(tool, Http):
        return _posted(tool, argument)
    if not callable(tool):
        help_text = ("a function from str to str, rl.Sandbox(…) or rl.Http(url)",)
        raise fail("RG0104", f"{tool!r} is no tool", help=help_text)
    function = cast("Any", tool)  # users may not run a checker
    try:
        said = function(argument)
    except CompileError:
        raise
    except Exception as error:
        return Answer(f"{type(error).__name__}: {error}", ok=False)
    if not isinstance(said, str):
        message = f"tool `{name_of(function)}` returned {said!r:.80}, which is no text"
        raise fail("RG0104", message, definition_of(function), help=("return a str",))
    return Answer(said, ok=True)


def parse_call(text: str, pattern: str = CALL, tools: Collection[str] | None = None) -> Call | None:
    """The first call of a tool in a text; None where there is none.

    Args:
        text: what a model wrote.
        pattern: a regular expression with groups `tool` and `argument`; `.` matches line breaks.
        tools: only calls of these; None for calls of any name, `<think>…</think>` among them.

    Raises:
        CompileError: RG0104, for a pattern that is none or lacks a group.
    """
    expression, start = call_pattern(pattern), 0
    while match := expression.search(text, start):
        if match["tool"] and (tools is None or match["tool"] in tools):
            return Call(match["tool"], match["argument"] or "")
        start = match.start() + 1  # a call may stand inside another element
    return None


@functools.lru_cache
def call_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of `parse_call`.

    Raises:
        CompileError: RG0104, for a pattern that is none or lacks a group.
    """
    try:
        expression = re.compile(pattern, re.DOTALL)
    except re.error as error:
        message = f"the pattern {pattern!r} is no regular expression: {error}"
        raise fail("RG0104", message, help=(f"the default is r'{CALL}'",)) from error
    for group in ("tool", "argument"):
        if group not in expression.groupindex:
            message = f"the pattern {pattern!r} has no group `{group}`"
            raise fail("RG0104", message, help=(f"(?P<{group}>…) names a group",))
    return expression


def _executed(sandbox: Sandbox, outcome: Outcome) -> Answer:
    reasons = {
        "timeout": f"stopped after {min(sandbox.seconds, sandbox.cpu_seconds):g} s",
        "memory": f"more than {sandbox.memory_mb} MB of memory",
        "processes": f"more than {sandbox.processes} processes or threads",
        "killed": "killed by a signal",
        "output": f"stopped after {sandbox.output_bytes} bytes of output",
    }
    if outcome.status not in reasons:
        return Answer(outcome.output, ok=outcome.status == "ok")
    break_ = "" if outcome.output.endswith("\n") or not outcome.output else "\n"
    return Answer(f"{outcome.output}{break_}[{reasons[outcome.status]}]", ok=False)


def _posted(tool: Http, argument: str) -> Answer:
    said = ""
    for attempt in range(tool.tries):
        if attempt:
            time.sleep(tool.backoff * 2 ** (attempt - 1))
        try:
            return Answer(_post(tool, argument), ok=True)
        except urllib.error.HTTPError as error:
            with error:
                said = f"HTTP {error.code} {error.reason}"
            if error.code < 500:
                break
        except urllib.error.URLError as error:
            said = f"{error.reason}"
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
    return Answer(said, ok=False)


def _post(tool: Http, argument: str) -> str:
    """The response to one try.

    Raises:
        OSError, HTTPException: as `urllib.request.urlopen`; TimeoutError also for a response that
            comes in pieces for too long.
    """
    body, kind = argument, "text/plain; charset=utf-8"
    if tool.send == "json":
        body, kind = json.dumps({"argument": argument}), "application/json"
    data = body.encode(errors="replace")
    request = urllib.request.Request(tool.url, data, {"Content-Type": kind}, method="POST")
    deadline = time.monotonic() + tool.seconds
    received = bytearray()
    with urllib.request.urlopen(request, timeout=tool.seconds) as response:
        while len(received) < tool.output_bytes and (chunk := response.read1(1 << 16)):
            received += chunk
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
    return bytes(received[: tool.output_bytes]).decode(errors="replace")
