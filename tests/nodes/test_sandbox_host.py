"""The processes around programs: who ends with whom, which user, and when nothing is executed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.value import freeze, from_json, to_json
from rlinf_graph.nodes.sandbox import Sandbox, run_code
from rlinf_graph.nodes.sandbox_host import template_for
from tests.nodes.sandboxes import DEADLINE, ROOT, WALLS, ends, lasting, template

NOBODY = 65533  # not the number that the sandbox itself takes
ENDLESS = "while True: pass"

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="it takes Linux to isolate a program"),
]


@pytest.fixture(params=WALLS, ids=" and ".join)
def walls(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    template(request.param)
    yield request.param
    assert lasting(template(request.param)) == set()


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A copy of the package that every user may read, wherever the repository lies."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        shutil.copytree(ROOT / "rlinf_graph", folder / "rlinf_graph")
        yield folder
    finally:
        shutil.rmtree(folder)


def script(
    code: str, *arguments: str, python: str = sys.executable, root: Path = ROOT, **how: Any
) -> Any:
    """Another process that uses the package."""
    head = "import sys; sys.path.insert(0, sys.argv[1])\n"
    head += "from rlinf_graph.nodes.sandbox import Sandbox, run_code\n"
    command = [python, "-B", "-c", head + textwrap.dedent(code), str(root), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/", **how)


def said(process: Any) -> str:
    with process:
        return process.communicate(timeout=DEADLINE)[0]


def test_several_threads_at_once(walls: tuple[str, ...]) -> None:
    sandbox = Sandbox(walls=walls, seconds=DEADLINE)
    code = "print({0})\nopen('own', 'x').write('{0}')\nprint(open('own').read())"
    with ThreadPoolExecutor(4) as threads:
        outcomes = threads.map(lambda i: run_code(sandbox, code.format(i)).output, range(24))
        assert list(outcomes) == [f"{i}\n{i}\n" for i in range(24)]


def test_a_template_that_was_killed_is_replaced(walls: tuple[str, ...]) -> None:
    first = template(walls)
    base = Path(first.report["base"])
    with ThreadPoolExecutor(8) as threads:
        sandbox = Sandbox(walls=walls, seconds=DEADLINE)
        running = [threads.submit(run_code, sandbox, "print(1)") for _ in range(16)]
        os.kill(first.process.pid, signal.SIGKILL)
        assert {program.result().output for program in running} == {"1\n"}
    assert run_code(Sandbox(walls=walls), "print(2)").output == "2\n"
    assert template(walls).process.pid != first.process.pid
    assert "namespaces" in walls or not base.exists()


PARENT = """
    import threading
    from rlinf_graph.nodes.sandbox_host import template_for
    walls = tuple(sys.argv[2].split())
    run_code(Sandbox(walls=walls), "")
    print(template_for(walls).process.pid, template_for(walls).report["base"], flush=True)
    running = lambda: run_code(Sandbox(walls=walls, seconds=1000, cpu_seconds=1000), sys.argv[3])
    threading.Thread(target=running, daemon=True).start()
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "is killed"])
def test_everything_ends_with_the_process_that_uses_it(
    walls: tuple[str, ...], killed: bool
) -> None:
    with script(PARENT, " ".join(walls), ENDLESS, stdin=subprocess.PIPE) as parent:
        first, base = parent.stdout.readline().split()
        if killed:
            parent.kill()
        parent.stdin.close()
        parent.wait(DEADLINE)
    assert ends(int(first))
    assert "namespaces" in walls or not Path(base).exists()


def test_a_template_starts_while_an_exception_is_handled(walls: tuple[str, ...]) -> None:
    first = template(walls)
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait(DEADLINE)
    try:
        raise ValueError
    except ValueError:
        assert run_code(Sandbox(walls=walls), "print(1)").output == "1\n"


def test_a_forked_process_has_a_template_of_its_own(walls: tuple[str, ...]) -> None:
    code = """
        import os
        sandbox = Sandbox(walls=tuple(sys.argv[2].split()))
        print(run_code(sandbox, "print(1)").output, end="", flush=True)
        child = os.fork()
        print(run_code(sandbox, "print(2)").output, end="", flush=True)
        if child:
            os.waitpid(child, 0)
            print(run_code(sandbox, "print(3)").output, end="")
    """
    assert said(script(code, " ".join(walls))) == "1\n2\n2\n3\n"


def test_an_ordinary_user(tmp_path: Path, for_all: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("this is an ordinary user already: every other test is of one")
    places = [os.path.realpath(sys.executable), "/usr/bin/python3"]
    python = next((p for p in places if may_be_started(p)), None)
    if python is None:
        pytest.skip("no Python 3.11 that an ordinary user can start")
    code = """
        for walls in [("namespaces", "landlock"), ("namespaces",), ("landlock",)]:
            for code in sys.argv[2:]:
                try:
                    print(walls, run_code(Sandbox(walls=walls), code).status)
                except Exception as error:
                    print(walls, error.diagnostics[0].notes)
        print(run_code(Sandbox(processes=2), "import os; os.fork(); os.fork()").status)
    """
    programs = {
        "print(1)": "ok",
        "import os; os.fork()": "processes",
        "import os; os.kill(os.getppid(), 9)": "error",
        f"open({str(tmp_path / 'new')!r}, 'w')": "error",
        "import socket; socket.socket()": "error",
    }
    tmp_path.chmod(0o777)
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": ()}
    lines = said(script(code, *programs, python=python, root=for_all, **who)).splitlines()
    assert lines == [f"{w} {status}" for w in WALLS for status in programs.values()] + ["processes"]


def may_be_started(python: str) -> bool:
    command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.run(command, check=False, user=NOBODY, group=NOBODY).returncode == 0
    except OSError:
        return False


CONFINED = """
    import ctypes, errno, os, struct
    from rlinf_graph.nodes import isolation, sandbox_filter
    load, equal, give = sandbox_filter.LOAD, sandbox_filter.EQUAL, sandbox_filter.RETURN
    do, deny = sandbox_filter._do, sandbox_filter.DENY
    numbers = {"landlock": 444, "namespaces": {"x86_64": 272, "aarch64": 97}[os.uname().machine]}
    made = [do(load, 0)]
    for wall in sys.argv[2:]:
        made += [do(equal, numbers[wall], no=1), do(give, deny)]
    made = b"".join([*made, do(give, sandbox_filter.ALLOW)])
    isolation.call("prctl", isolation.SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    buffer = ctypes.create_string_buffer(made, len(made))
    program = struct.pack("HxxxxxxP", len(made) // 8, ctypes.addressof(buffer))
    isolation.call("prctl", 22, 2, program)
    try:
        print(run_code(Sandbox(), "print('executed')").output)
    except Exception as error:
        print(error)
"""
"""A process for which the kernel refuses namespaces (unshare), Landlock, or both."""


@pytest.mark.parametrize("missing", ["namespaces", "landlock"])
def test_one_mechanism_is_enough(missing: str) -> None:
    other = {"namespaces": "landlock", "landlock": "namespaces"}[missing]
    template((other,))
    assert said(script(CONFINED, missing)) == "executed\n\n"


def test_nothing_is_executed_where_the_kernel_refuses_both() -> None:
    text = said(script(CONFINED, "namespaces", "landlock"))
    assert text.startswith("error[RG0511]: programs that a model wrote are not executed here")
    assert "= note: namespaces: [Errno 1] unshare: Operation not permitted" in text
    assert "= note: landlock: [Errno 1] syscall: Operation not permitted" in text
    assert "help: on Linux 5.13 or newer" in text


def test_nothing_is_executed_without_a_mechanism() -> None:
    with pytest.raises(CompileError, match=r"RG0511.*nothing to isolate") as caught:
        template_for(())
    left_out = ("namespaces: left out by `walls`", "landlock: left out by `walls`")
    assert caught.value.diagnostics[0].notes == left_out
    with pytest.raises(CompileError, match=r"RG0511.*`walls` leaves nothing"):
        Sandbox(walls=())


def test_nothing_is_executed_on_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CompileError, match=r"RG0511.*it takes Linux") as caught:
        run_code(Sandbox(), "print(1)")
    assert caught.value.diagnostics[0].notes == ("this is darwin",)


def test_several_processes_need_namespaces() -> None:
    template(("landlock",))
    with pytest.raises(CompileError, match=r"RG0511.*namespaces are needed"):
        run_code(Sandbox(walls=("landlock",), processes=2), "print(1)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "`seconds` is 0; it has to be at least 0.001"),
        ({"seconds": float("nan")}, "`seconds` is nan"),
        ({"memory_mb": 8}, "`memory_mb` is 8; it has to be at least 64"),
        ({"processes": 1.5}, "`processes` is 1.5"),
        ({"walls": ("jail",)}, r"`walls` is \('jail',\)"),
    ],
)
def test_limits_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=f"RG0104.*Sandbox: {message}"):
        Sandbox(**options)


def test_a_sandbox_stands_in_a_saved_graph() -> None:
    sandbox = Sandbox(seconds=1.0, walls=("landlock",))
    assert from_json(to_json(freeze(sandbox))) == sandbox
