"""A program's own process: it limits and isolates itself, runs the code, and ends."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import resource
import sys
import tempfile
import threading
import traceback
import types
from typing import Any, NoReturn

from rlinf_graph.nodes import isolation, sandbox_filter
from rlinf_graph.nodes.isolation import Isolation

OK, ERROR, MEMORY, PROCESSES = 0, 1, 101, 102
"""Exit codes."""

OPEN_FILES = 64
ISOLATED = "isolated"
"""What is said when the code is about to run; anything else said is a reason why it is not."""


def start(
    request: dict[str, Any], folder: str, walls: Isolation, parent: int, output: int, say: int
) -> NoReturn:
    """Isolate this process and run `request["code"]` in it.

    Args:
        request: the fields of a `Sandbox`, and `code`.
        folder: where it may write.
        walls: what isolates it.
        parent: its supervisor's process id, as it sees it.
        output: descriptor to print to.
        say: descriptor to say `ISOLATED`, or what failed, to; then closed.
    """
    code = ERROR
    try:
        say = _keep_only(output, say)
        if _said(say, request, folder, walls, parent) == ISOLATED:
            os.close(say)
            code = _execute(request["code"])
    finally:
        os._exit(code)


def _said(say: int, *how: Any) -> str:
    """Isolate this process; what was said of it."""
    try:
        _isolate(*how)
        said = ISOLATED
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    os.write(say, said.encode())
    return said


def _keep_only(output: int, say: int) -> int:
    """Close what was inherited, all but /dev/null to read from; the new number of `say`."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(say, 3, inheritable=False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return 3


def _isolate(request: dict[str, Any], folder: str, walls: Isolation, parent: int) -> None:
    os.setsid()  # kill(0, …) would reach the processes that started this one
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    tempfile.tempdir = None
    if walls.namespaces:
        isolation.leave_root()
    _limit(request)
    if request["processes"] > 1:
        isolation.call("unshare", isolation.NEW_USER)  # in which processes are counted from 0
    isolation.drop_capabilities()
    if request["processes"] > 1:
        _limit_processes(request["processes"])
    if walls.landlock:
        isolation.restrict_files(folder)
    isolation.die_with(parent)
    sandbox_filter.install(request["processes"])


def _limit(request: dict[str, Any]) -> None:
    megabyte = 1 << 20
    limits = {
        resource.RLIMIT_AS: request["memory_mb"] * megabyte,
        resource.RLIMIT_CPU: request["cpu_seconds"],
        resource.RLIMIT_FSIZE: request["file_mb"] * megabyte,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for name, most in limits.items():
        hard = resource.getrlimit(name)[1]  # only root may raise it
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(name, (most, most))


def _limit_processes(most: int) -> None:
    """Limit processes and threads, and try the limit: it does not bind root.

    Raises:
        PermissionError: where it does not hold.
    """
    resource.setrlimit(resource.RLIMIT_NPROC, (1, most))
    with contextlib.suppress(BlockingIOError):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        raise PermissionError("the number of processes cannot be limited; processes=1 can")
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _execute(code: str) -> int:
    """Run the code as `__main__`; the exit code. A failure's last line is printed."""
    for name in [n for n in sys.modules if n.partition(".")[0] == __name__.partition(".")[0]]:
        del sys.modules[name]  # a program finds the standard library alone
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = ["program"]
    builtins.exit = builtins.quit = sys.exit  # pyright: ignore[reportAttributeAccessIssue]  what the module `site` adds
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]  a text file, as Python started with
    try:
        exec(compile(code, "<program>", "exec", dont_inherit=True), main.__dict__)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
    except BaseException as error:
        return _failed(error)
    return OK


def _failed(error: BaseException) -> int:
    if isinstance(error, SystemExit) and error.code in (None, 0):
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        return OK
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        os.write(1, "".join(traceback.format_exception_only(error)[-1:]).encode(errors="replace"))
    if isinstance(error, MemoryError):
        return MEMORY
    refused = isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN
    return PROCESSES if refused or str(error) == "can't start new thread" else ERROR
