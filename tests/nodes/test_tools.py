"""Tools: functions, programs, and servers of a real `http.server`."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.value import FunctionRef, freeze, from_json, to_json
from rlinf_graph.nodes.sandbox import Sandbox
from rlinf_graph.nodes.tools import Answer, Call, Http, Tool, call_tool, parse_call
from tests.nodes.sandboxes import DEADLINE, template_for_any

pytestmark = pytest.mark.timeout(60)


class Server:
    """Answers with the statuses it is given, one after the other, then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.asked: list[tuple[str, str, float]] = []
        self.answer: Callable[[BaseHTTPRequestHandler, str], None] = echo
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.asked.append((self.headers["Content-Type"], body, time.monotonic()))
                status = outer.statuses.pop(0) if outer.statuses else 200
                if status == 200:
                    outer.answer(self, body)
                else:
                    self.send_error(status)

            def log_message(self, *_said: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/tool"


def echo(handler: BaseHTTPRequestHandler, body: str) -> None:
    data = f"said {body}".encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def test_a_function() -> None:
    assert call_tool(str.upper, "abc") == Answer("ABC", ok=True)
    assert call_tool(freeze(str.upper), "abc") == Answer("ABC", ok=True)


def test_a_function_that_raises() -> None:
    def divide(argument: str) -> str:
        return str(1 / int(argument))

    assert call_tool(divide, "0") == Answer("ZeroDivisionError: division by zero", ok=False)
    said = "ValueError: invalid literal for int() with base 10: 'x'"
    assert call_tool(divide, "x") == Answer(said, ok=False)


def test_programming_errors_are_raised() -> None:
    def length(argument: str) -> Any:
        return len(argument)

    with pytest.raises(CompileError, match=r"RG0104.*`length` returned 3, which is no text"):
        call_tool(length, "abc")
    none: Any = 5
    with pytest.raises(CompileError, match=r"RG0104.*5 is no tool"):
        call_tool(none, "abc")
    with pytest.raises(CompileError, match="RG0502"):
        call_tool(FunctionRef("file.py", "tool", "0"), "abc")


@pytest.mark.skipif(sys.platform != "linux", reason="it takes Linux to isolate a program")
@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("print(6 * 7)", Answer("42\n", ok=True)),
        ("\n    x = 6\n    print(x * 7)\n", Answer("42\n", ok=True)),
        ("1 / 0", Answer("ZeroDivisionError: division by zero\n", ok=False)),
        ("x = ' ' * (8 << 30)", Answer("MemoryError\n[more than 256 MB of memory]", ok=False)),
        ("import ctypes\nctypes.string_at(0)", Answer("[killed by a signal]", ok=False)),
        ("print('x' * 50)", Answer("x" * 40 + "\n[stopped after 40 bytes of output]", ok=False)),
    ],
)
def test_a_program(code: str, answer: Answer) -> None:
    sandbox = Sandbox(seconds=DEADLINE, output_bytes=40)
    template_for_any()
    assert call_tool(sandbox, code) == answer


@pytest.mark.skipif(sys.platform != "linux", reason="it takes Linux to isolate a program")
def test_a_program_that_does_not_end() -> None:
    template_for_any()
    answer = call_tool(Sandbox(seconds=1.0), "print(1)\nwhile True: pass")
    assert answer == Answer("1\n[stopped after 1 s]", ok=False)


@pytest.mark.skipif(sys.platform != "linux", reason="it takes Linux to isolate a program")
def test_a_refusal_is_raised() -> None:
    with pytest.raises(CompileError, match="RG0511"):
        call_tool(Sandbox(walls=("landlock",), processes=2), "print(1)")


def test_a_server(server: Server) -> None:
    answer = call_tool(Http(server.url), 'say "ä"')
    assert answer == Answer('said {"argument": "say \\"\\u00e4\\""}', ok=True)
    assert call_tool(Http(server.url, send="text"), "ä\n") == Answer("said ä\n", ok=True)
    kinds = [(kind, body) for kind, body, _when in server.asked]
    assert kinds[1] == ("text/plain; charset=utf-8", "ä\n")
    assert (kinds[0][0], json.loads(kinds[0][1])) == ("application/json", {"argument": 'say "ä"'})


def test_a_long_response_is_cut(server: Server) -> None:
    tool = Http(server.url, send="text", output_bytes=8)
    assert call_tool(tool, "abcdefgh") == Answer("said abc", ok=True)


def test_a_server_that_fails_is_asked_again(server: Server) -> None:
    server.statuses = [500, 503]
    assert call_tool(Http(server.url, backoff=0.05), "a").ok
    first, second, third = [when for _kind, _body, when in server.asked]
    assert second - first >= 0.05
    assert third - second >= 0.1
    server.statuses = [500, 500, 500]
    answer = call_tool(Http(server.url, backoff=0.0, tries=2), "a")
    assert answer == Answer("HTTP 500 Internal Server Error", ok=False)
    assert len(server.asked) == 5


def test_a_server_that_refuses_is_not_asked_again(server: Server) -> None:
    server.statuses = [404]
    assert call_tool(Http(server.url), "a") == Answer("HTTP 404 Not Found", ok=False)
    assert len(server.asked) == 1


def test_a_server_that_does_not_answer(server: Server) -> None:
    go_on = threading.Event()

    def late(handler: BaseHTTPRequestHandler, body: str) -> None:
        go_on.wait()

    server.answer = late
    began = time.monotonic()
    answer = call_tool(Http(server.url, seconds=0.1, tries=2, backoff=0.0), "a")
    go_on.set()
    assert answer == Answer("timed out", ok=False)
    assert len(server.asked) == 2
    assert 0.2 <= time.monotonic() - began < 20


def test_a_server_that_answers_in_pieces_for_too_long(server: Server) -> None:
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler, body: str) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.02):
            handler.wfile.write(b"x")

    server.answer = drip
    answer = call_tool(Http(server.url, seconds=0.2, tries=1), "a")
    stop.set()
    assert answer == Answer("timed out", ok=False)


def test_no_server(server: Server) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        port = gone.server_port
    answer = call_tool(Http(f"http://127.0.0.1:{port}", tries=2, backoff=0.0), "a")
    assert not answer.ok
    assert "refused" in answer.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://a/b"}, "`url` is 'ftp://a/b', which is no address"),
        ({"url": "localhost:80"}, "`url` is 'localhost:80'"),
        ({"url": "http://a", "tries": 0}, "`tries` is 0"),
        ({"url": "http://a", "seconds": -1.0}, "`seconds` is -1.0"),
        ({"url": "http://a", "send": "xml"}, "`send` is 'xml'"),
    ],
)
def test_a_server_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=f"RG0104.*Http: {message}"):
        Http(**options)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("I ask.\n<python>\nprint(1)\n</python> Then", Call("python", "\nprint(1)\n")),
        ("<a>1</a><b>2</b>", Call("a", "1")),
        ("<a><b>1</b></a>", Call("a", "<b>1</b>")),
        ("<a>1</b>", None),
        ("1 < 2 and 3 > 2", None),
        ("<a></a>", Call("a", "")),
    ],
)
def test_a_call_in_a_text(text: str, call: Call | None) -> None:
    assert parse_call(text) == call


def test_a_call_of_known_tools_only() -> None:
    text = "<think>I ask <search>x</search>, </think><other>1</other><python>2</python>"
    assert parse_call(text, tools={"python", "search"}) == Call("search", "x")
    assert parse_call(text, tools=["python"]) == Call("python", "2")
    assert parse_call(text, tools=()) is None


def test_a_pattern_of_the_user() -> None:
    pattern = r"Action: (?P<tool>\w+)\[(?P<argument>.*?)\]"
    assert parse_call("Action: search[a\nb] Action: x[y]", pattern) == Call("search", "a\nb")
    assert parse_call("search(a)", pattern) is None
    optional = r"!(?P<tool>\w+)( (?P<argument>\w+))?"
    assert parse_call("!now", optional) == Call("now", "")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<tool>", "is no regular expression"),
        (r"<(\w+)>", "has no group `tool`"),
        (r"(?P<tool>\w+)", "has no group `argument`"),
    ],
)
def test_a_pattern_that_is_none(pattern: str, message: str) -> None:
    with pytest.raises(CompileError, match=f"RG0104.*{message}") as caught:
        parse_call("", pattern)
    assert "?P<" in caught.value.diagnostics[0].help[0]


def test_tools_stand_in_a_saved_graph() -> None:
    tools: dict[str, Tool] = {
        "python": Sandbox(seconds=1.0),
        "search": Http("http://localhost:8000", tries=2),
        "upper": freeze(test_a_function),
    }
    read = from_json(json.loads(json.dumps(to_json(tools))))
    assert read == tools
