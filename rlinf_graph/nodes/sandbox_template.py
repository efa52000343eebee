"""The process that programs are forked from: isolated once, and kept waiting.

`sandbox` starts it with Python's standard library alone. Three kinds of process follow:

    template     isolates itself and waits for connections; never sees a program or its output
    supervisor   one for each program, forked from the template: see `sandbox_supervisor`
    program      forked from its supervisor and isolated further: see `sandbox_program`

Programs run in namespaces of their own or under Landlock, or both, and always under the filter of
`sandbox_filter`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable

from rlinf_graph.nodes import isolation, sandbox_filter
from rlinf_graph.nodes.isolation import Isolation
from rlinf_graph.nodes.sandbox_supervisor import remove_folder, supervise
from rlinf_graph.nodes.sandbox_wire import send

LOADED = "bisect collections copy dataclasses datetime decimal fractions functools heapq itertools"
LOADED += " json math operator random re statistics string time typing"
"""Modules that programs often import: these are there without reading files."""


def serve(control_number: int, walls: tuple[str, ...]) -> None:
    """Isolate this process, report how, and fork a supervisor for each connection received.

    Args:
        control_number: descriptor of a socket. A report is sent first: for each of `namespaces`,
            `landlock` and `filter` what is wrong with it, "" for nothing; and `base`, the folder
            of `Isolation`. Then each byte received brings a connection's descriptor.
        walls: which of `namespaces` and `landlock` to use where they work.
    """
    os.umask(0o022)  # its folders are for nobody, too
    for name in LOADED.split():
        importlib.import_module(name)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where memory runs out, programs go first
    control = socket.socket(fileno=control_number)
    wrong = {name: _what_is_wrong(name, walls) for name in ("namespaces", "landlock", "filter")}
    namespaces, landlock = not wrong["namespaces"], not wrong["landlock"]
    if wrong["filter"] or not (namespaces or landlock):
        send(control, wrong)
        return
    if namespaces:
        isolation.enter_namespaces()
    base = isolation.FOLDER if namespaces else tempfile.mkdtemp(prefix="rlinf-graph-")
    try:
        send(control, {**wrong, "base": base})
        _fork_for_each(control, Isolation(namespaces, landlock, base))
    finally:
        with contextlib.suppress(ChildProcessError):
            os.wait()  # for the last of them: they end when connections are closed
        if not namespaces:
            remove_folder(base)


def _what_is_wrong(name: str, walls: tuple[str, ...]) -> str:
    """Try a mechanism in a child; what failed there, "" for nothing."""
    trials = {"namespaces": _try_namespaces, "landlock": _try_landlock, "filter": _try_filter}
    if name not in (*walls, "filter"):
        return "left out by `walls`"
    hearing, saying = os.pipe()
    child = os.fork()
    if child == 0:
        _say_how_it_went(trials[name], saying)
    os.close(saying)
    with open(hearing, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return "" if said == "well" else said or "the process that tried it was killed"


def _say_how_it_went(trial: Callable[[], None], saying: int) -> None:
    try:
        trial()
        os.write(saying, b"well")
    except Exception as error:
        os.write(saying, str(error).encode())
    finally:
        os._exit(0)


def _try_namespaces() -> None:
    isolation.enter_namespaces()
    isolation.enter_own_folder(1)


def _try_landlock() -> None:
    isolation.drop_capabilities()
    isolation.restrict_files(tempfile.gettempdir())


def _try_filter() -> None:
    isolation.drop_capabilities()
    sandbox_filter.install(1)


def _fork_for_each(control: socket.socket, walls: Isolation) -> None:
    """Until the other end is closed."""
    isolation.reading_rules()
    sandbox_filter.program(os.uname().machine, 1)  # both are kept, for every program
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    template = os.getpid()
    while True:
        try:
            _byte, descriptors, _flags, _address = socket.recv_fds(control, 1, 1)
        except ConnectionResetError:
            return
        if not descriptors:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            try:
                child = os.fork()
            except OSError as error:
                with contextlib.suppress(OSError):
                    send(connection, {"refused": f"no process could be started: {error}"})
                continue
            if child == 0:
                control.close()
                supervise(connection, walls, template)
