"""The user's side of the process that programs are forked from."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlinf_graph.ir.diagnostic import CompileError, fail
from rlinf_graph.nodes.sandbox_supervisor import remove_folder
from rlinf_graph.nodes.sandbox_wire import receive, send

STARTING = 30.0
"""Seconds that the template, or a program until it runs, may take on a busy machine."""

BOOT = """
import sys
sys.path.insert(0, sys.argv[1])
from rlinf_graph.nodes.sandbox_template import serve
del sys.path[0]
serve(int(sys.argv[2]), tuple(sys.argv[3:]))
"""

PROBE = """
import os, socket
def hole(name, act):
    try:
        act()
    except OSError:
        return
    print(name)
hole("network", socket.socket)
hole("processes", lambda: os.fork() or os._exit(0))
hole("signals", lambda: os.kill({template}, 0))
hole("reading", lambda: open({file!r}).close())
hole("writing", lambda: open({file!r}, "a").close())
hole("making files", lambda: open({file!r} + ".new", "w").close())
"""
"""Tries what a program must not be able to do, and prints what it could do."""

LIMITS = {
    "seconds": STARTING,
    "cpu_seconds": 10,
    "memory_mb": 256,
    "processes": 1,
    "output_bytes": 10_000,
    "file_mb": 1,
}

HELP = (
    "on Linux 5.13 or newer: allow unprivileged user namespaces (user.max_user_namespaces, "
    "kernel.apparmor_restrict_unprivileged_userns), or start the kernel with Landlock (lsm=…)",
    "in a container: a seccomp profile that allows unshare and mount, or Landlock's system calls",
)


def refusal(
    reason: str, notes: tuple[str, ...] = (), help_text: tuple[str, ...] = HELP
) -> CompileError:
    """RG0511, with why programs of a model are not executed."""
    message = f"programs that a model wrote are not executed here: {reason}"
    return fail("RG0511", message, notes=notes, help=help_text)


def template_for(names: Iterable[str]) -> Template:
    """The template of this process that uses these mechanisms, started when there is none.

    Raises:
        CompileError: RG0511, where they cannot isolate a program.
    """
    walls = tuple(sorted(set(names)))
    if sys.platform != "linux":
        raise refusal("it takes Linux to isolate them", (f"this is {sys.platform}",))
    with _lock:
        if _ending.is_set():
            raise refusal("this process is ending", help_text=())
        known = _templates.get(walls)
        if known is not None and known.process.poll() is not None:
            known.close()
            known = None
        if known is None:
            known = _templates[walls] = Template(walls)
        return known


class Template:
    """The process that programs are forked from, and the socket that leads to it.

    Attributes:
        process: its process.
        report: for `namespaces`, `landlock` and `filter` what is wrong with them, "" for nothing.
    """

    def __init__(self, walls: tuple[str, ...]) -> None:
        """Start it, see what isolates it, and try whether that holds.

        Raises:
            CompileError: RG0511.
        """
        self.report: dict[str, str] = {}
        self._open: set[socket.socket] = set()
        self._control, theirs = socket.socketpair()
        with theirs:
            self.process = _start(theirs.fileno(), walls)
        self._control.settimeout(STARTING)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        try:
            self.report = receive(self._control)
        except (OSError, EOFError) as error:
            raise refusal("the process that executes them does not start", (str(error),)) from error
        if "base" not in self.report:
            notes = tuple(f"{name}: {why}" for name, why in self.report.items() if why)
            raise refusal("there is nothing to isolate them with", notes)
        if holes := self._holes():
            raise refusal("what isolates them has holes", (holes,))

    def execute(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """Have a program executed.

        Args:
            request: the fields of a `Sandbox`, and `code`.
            seconds: to wait for an answer at most.

        Returns:
            What its supervisor answers: the fields of an `Outcome`, or `refused` with a reason;
            None where the template itself has ended.
        """
        began = time.monotonic()
        mine, theirs = socket.socketpair()
        self._open.add(mine)
        try:
            mine.settimeout(seconds)
            with theirs:
                socket.send_fds(self._control, [b"+"], [theirs.fileno()])
            send(mine, request)
            return receive(mine)
        except (OSError, EOFError):
            return self._without_answer(time.monotonic() - began)
        finally:
            self._open.discard(mine)
            mine.close()

    def _without_answer(self, seconds: float) -> dict[str, Any] | None:
        try:
            self.process.wait(1.0)  # where it was killed, it may take a moment to end
        except subprocess.TimeoutExpired:
            return {"output": "", "status": "killed", "seconds": seconds}
        return None

    def close(self) -> None:
        """End it, and the programs that still run; remove what it could not remove."""
        self._control.close()
        for connection in tuple(self._open):  # a supervisor then ends its program
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        base = self.report.get("base", "") if self.report.get("namespaces") else ""
        for _attempt in range(100):
            if not os.path.isdir(base):
                break
            with contextlib.suppress(OSError):  # a program that is being killed may still write
                remove_folder(base)
                break
            time.sleep(0.02)

    def forget(self) -> None:
        """Leave it to the process that this one was forked from."""
        for connection in (self._control, *self._open):
            connection.close()
        self.process.returncode = 0  # not a child of this process

    def _holes(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "kept")
            file.touch()
            code = PROBE.format(template=self.process.pid, file=str(file))
            answer = self.execute(LIMITS | {"code": code}, STARTING)
        if answer is None:
            return "the program that looks for them was not executed"
        if answer.get("status") == "ok":
            return ", ".join(answer["output"].splitlines())
        return answer.get("refused") or f"{answer['status']}: {answer['output']}"


def _start(control_number: int, walls: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Python with its own library alone, and an environment that tells nothing.

    As `-I`, but for the variable that makes the order of sets of strings the same every time.
    """
    python = os.path.realpath(sys.executable)
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "TMPDIR": tempfile.gettempdir()}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    flags = ("-s", "-P", "-S", "-B", "-X", "utf8", "-c", BOOT)
    return subprocess.Popen(
        [python, *flags, root, str(control_number), *walls],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(control_number,),
        env=environment,
        cwd="/",
        start_new_session=True,
    )


_templates: dict[tuple[str, ...], Template] = {}
_lock = threading.Lock()
_ending = threading.Event()


def _close_all() -> None:
    with _lock:
        _ending.set()
    while _templates:
        _templates.popitem()[1].close()


def _forget_all() -> None:
    """In a forked child: its programs are executed by a template of its own."""
    global _lock
    _lock = threading.Lock()
    while _templates:
        _templates.popitem()[1].forget()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
