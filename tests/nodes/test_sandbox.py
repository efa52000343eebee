"""Real processes: what a program must not do, in every way a machine can shut it in."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.nodes.isolation import Isolation
from rlinf_graph.nodes.sandbox import Outcome, Sandbox, run_code
from rlinf_graph.nodes.sandbox_supervisor import _Run
from tests.nodes.sandboxes import DEADLINE, WALLS, lasting, template

Run = Callable[..., Outcome]

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="it takes Linux to isolate a program"),
]


@pytest.fixture(params=WALLS, ids=" and ".join)
def walls(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """Each way to isolate; afterwards nothing is left of what was executed."""
    before = template(request.param)
    yield request.param
    after = template(request.param)
    assert after.process.pid == before.process.pid, "the template did not live through it"
    assert lasting(after) == set()
    if "namespaces" not in request.param:
        assert list(Path(after.report["base"]).iterdir()) == []


@pytest.fixture
def run(walls: tuple[str, ...]) -> Run:
    def run(code: str, **limits: Any) -> Outcome:
        patient = {"seconds": DEADLINE, "cpu_seconds": int(DEADLINE), **limits}
        return run_code(Sandbox(walls=walls, **patient), code)

    return run


def test_a_program_prints(run: Run) -> None:
    outcome = run("import math, json, re\nprint(json.dumps({'e': round(math.e, 3)}))")
    assert (outcome.status, outcome.output) == ("ok", '{"e": 2.718}\n')
    assert 0 < outcome.seconds < DEADLINE


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(1)\n1 / 0", "1\nZeroDivisionError: division by zero\n"),
        ("x = = 3", "SyntaxError: invalid syntax\n"),
        ("import sys; sys.exit(3)", "SystemExit: 3\n"),
        ("input()", "EOFError: EOF when reading a line\n"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'\n"),
        ("from rlinf_graph.nodes import sandbox", "ModuleNotFoundError: No module named"),
    ],
)
def test_a_program_fails(run: Run, code: str, output: str) -> None:
    outcome = run(code)
    assert outcome.status == "error"
    assert outcome.output.startswith(output)


def test_exit_codes(run: Run) -> None:
    assert run("print(1); exit(0)").status == "ok"
    assert run("import os; os._exit(0)").status == "ok"
    assert run("import os; os._exit(7)").status == "error"


def test_a_program_uses_files_of_its_own_and_much_of_the_library(run: Run) -> None:
    code = """
import asyncio, dataclasses, os, pickle, shutil, sqlite3, tempfile
@dataclasses.dataclass
class Point:
    x: int
os.mkdir("folder")
with open("folder/a", "wb") as file:
    pickle.dump(Point(5), file)
os.rename("folder/a", "b")
with tempfile.TemporaryDirectory() as folder:
    shutil.copyfile("b", f"{folder}/c")
    print(pickle.load(open(f"{folder}/c", "rb")), sorted(os.listdir()))
print(sqlite3.connect("data").execute("select 6 * 7").fetchone())
async def main():
    await asyncio.sleep(0)
    print("done")
asyncio.run(main())
"""
    outcome = run(code)
    assert outcome.output.splitlines()[1:] == ["(42,)", "done"]
    assert outcome.output.startswith("Point(x=5) ['b', 'folder'")
    assert run("import os; print(os.listdir())").output == "[]\n"


def test_one_program_does_not_influence_the_next(run: Run) -> None:
    run("import builtins, json, os\nbuiltins.x = 1\njson.dumps = None\nos.environ['A'] = '1'")
    code = "import json, os\nprint(json.dumps(1), 'A' in os.environ, 'x' in dir(__builtins__))"
    assert run(code).output == "1 False False\n"
    sets = "print({'a', 'b', 'c', 'd', 'e', 'f'})"
    assert run(sets).output == run_code(Sandbox(), sets).output


@pytest.mark.parametrize(
    "code",
    ["while True: pass", "import time; time.sleep(100)", "while True:\n try: 1 / 0\n except: pass"],
)
def test_endless(run: Run, code: str) -> None:
    outcome = run("print('begins')\n" + code, seconds=1.0)
    assert (outcome.status, outcome.output) == ("timeout", "begins\n")
    assert 1.0 <= outcome.seconds < DEADLINE


def test_what_a_program_has_said_is_read_when_its_time_is_over_already() -> None:
    """Its supervisor was not awake before; the program is any process that does not end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as program:
        ours, _theirs = socket.socketpair()
        made = _Run(
            {"seconds": 1.0, "output_bytes": 100},
            "",
            Isolation(namespaces=False, landlock=False, base=""),
        )
        os.write(made.end, b"said")
        assert made._watch(program.pid, ours, time.monotonic() - 2) == "timeout"
        assert made.output == b"said"
        program.kill()


def test_processor_time(run: Run) -> None:
    outcome = run("while True: pass", cpu_seconds=1)
    assert outcome.status == "timeout"
    assert outcome.seconds < DEADLINE


def test_fork_bomb(run: Run) -> None:
    assert run("import os\nwhile True: os.fork()").status == "processes"
    caught = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    assert run(caught, seconds=0.5).status == "timeout"
    thread = "import threading\nthreading.Thread(target=print).start()"
    assert run(thread).status == "processes"


def test_memory(run: Run) -> None:
    assert run("x = bytearray(8 << 30)").status == "memory"
    outcome = run("x = []\nwhile True: x.append(bytearray(1 << 20))", memory_mb=128)
    assert (outcome.status, outcome.output) == ("memory", "MemoryError\n")
    assert run("x = bytearray(8 << 20); print(len(x))", memory_mb=64).status == "ok"


def test_endless_output(run: Run) -> None:
    outcome = run("while True: print('x' * 99)", output_bytes=1000)
    assert (outcome.status, outcome.output) == ("output", ("x" * 99 + "\n") * 10)
    assert run("print('x' * 999)", output_bytes=1000).status == "ok"
    assert run("print('x' * 1000)", output_bytes=1000).status == "output"


def test_large_file(run: Run) -> None:
    outcome = run("open('a', 'wb').write(bytes(3 << 20))", file_mb=2)
    assert outcome.status == "error"
    assert outcome.output.startswith("OSError")


def test_crash(run: Run) -> None:
    assert run("print(1)\nimport ctypes; ctypes.string_at(0)").status == "killed"
    assert run("import os; os.abort()").status == "killed"


def test_network(run: Run) -> None:
    abstract = f"\0rlinf-graph-test-{os.getpid()}"
    inet, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    with inet, unix:
        unix.bind(abstract)
        unix.listen()
        port = inet.getsockname()[1]
        assert (
            run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))").status == "error"
        )
        made = run(
            "import ctypes, socket, struct\nlibc = ctypes.CDLL(None)\n"
            f"to = struct.pack('=H', 2) + struct.pack('!HI', {port}, 0x7f000001) + bytes(8)\n"
            "made = libc.socket(2, 1, 0)\nprint(made, libc.connect(max(made, 0), to, 16))\n"
            f"try: socket.socket(socket.AF_UNIX).connect({abstract!r})\n"
            "except PermissionError: print('refused')"
        )
        assert made.output == "-1 -1\nrefused\n"
        assert select.select([inet, unix], [], [], 0)[0] == []
        with socket.create_connection(("127.0.0.1", port)):  # the test itself would be seen
            assert select.select([inet], [], [], DEADLINE)[0] == [inet]


ACTS = """
open(kept, "w")
open(kept, "a").write("x")
open(new, "w")
open("../" * 20 + new, "w")
os.symlink(kept, "link"); open("link", "w")
os.symlink(folder, "inside"); open("inside/new", "w")
os.chmod(kept, 0o777)
os.utime(kept, (0, 0))
os.truncate(kept, 0)
os.open(kept, os.O_RDONLY | os.O_TRUNC)
os.remove(kept)
open("a", "w"); os.rename("a", new)
os.link(kept, "b")
os.mkdir(new)
open(kept).read()
os.listdir(folder)
open(os.__file__, "a")
os.chmod(os.__file__, 0o600)
open("/etc/passwd")
open("/proc/self/environ")
open(own_source)
"""


def test_files_of_others(run: Run, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    kept.chmod(0o640)
    before = kept.stat()
    values = {"kept": str(kept), "new": str(tmp_path / "new"), "folder": str(tmp_path)}
    code = f"""
import os
for act in {ACTS.strip().splitlines()}:
    try: exec(act, {{"os": os, "own_source": {__file__!r}, **{values}}})
    except OSError: print("refused")
    else: print(act)
"""
    assert run(code).output == "refused\n" * len(ACTS.strip().splitlines())
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"
    assert (kept.stat().st_mode, kept.stat().st_mtime) == (before.st_mode, before.st_mtime)


def test_a_folder_is_removed_however_deep_and_locked_it_is(run: Run) -> None:
    code = """
import os
os.mkdir("locked"); open("locked/a", "w"); os.mkdir("locked/none", 0)
os.symlink("/", "link"); os.symlink("nowhere", "dangling")
for _ in range(1100):
    os.mkdir("d"); os.chdir("d"); open("f", "w")
"""
    assert run(code).status == "ok"


def test_secrets_of_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "letmein")
    code = f"""
import os
print(dict(os.environ))
for name in ("self", os.getppid(), {os.getpid()}, {template(("landlock",)).process.pid}):
    try: print(open(f"/proc/{{name}}/environ").read())
    except OSError: print("no")
"""
    outcome = run(code)
    assert outcome.output.count("no\n") == 4
    assert "letmein" not in outcome.output


def test_other_processes(run: Run, walls: tuple[str, ...]) -> None:
    own = template(walls).process.pid
    code = f"""
import ctypes, os, resource, signal
libc = ctypes.CDLL(None)
for process in (os.getppid(), {os.getpid()}, {own}, -1, 0, -{own}):
    try: os.kill(process, signal.SIGKILL); print("killed", process)
    except OSError: pass
for process in {{os.getppid(), {os.getpid()}, {own}}} - {{0}}:
    try: resource.prlimit(process, resource.RLIMIT_CPU, (1, 1)); print("limited", process)
    except OSError: pass
    if libc.ptrace(16, process, 0, 0) == 0: print("traced", process)
    if libc.setpriority(0, process, 19) == 0: print("slowed", process)
print("lives")
"""
    assert run(code).output == "lives\n"


SEVERAL = Sandbox(processes=4, walls=("namespaces",))


def test_several_processes() -> None:
    template(SEVERAL.walls)
    bomb = """
import os
started = 0
while True:
    try:
        if os.fork() == 0:
            import time; time.sleep(1000)
        started += 1
    except BlockingIOError:
        break
print(started)
"""
    assert run_code(SEVERAL, bomb).output == "3\n"
    assert run_code(SEVERAL, "import os\nwhile True: os.fork()").status == "processes"
    thread = (
        "import threading\nfor i in range(3): threading.Thread(target=print, args=(i,)).start()"
    )
    assert sorted(run_code(SEVERAL, thread).output.split()) == ["0", "1", "2"]
    command = "[sys.executable, '-S', '-c', 'print(6 * 7)']"
    child = f"import subprocess, sys\nprint(subprocess.check_output({command}))"
    assert run_code(SEVERAL, child).output == "b'42\\n'\n"
    assert lasting(template(SEVERAL.walls)) == set()


def test_background_processes() -> None:
    here = template(SEVERAL.walls)
    code = """
import os, time
hearing, saying = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.write(saying, b"behind")
        time.sleep(1000)
    os._exit(0)
print(os.read(hearing, 6))
"""
    outcome = run_code(SEVERAL, code)
    assert (outcome.status, outcome.output) == ("ok", "b'behind'\n")
    assert lasting(here) == set()
    assert run_code(SEVERAL, code + "time.sleep(1000)").status == "timeout"
    assert lasting(here) == set()
