"""The process beside each program: gives it a folder, waits, ends it, reports, and cleans up."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from rlinf_graph.nodes import isolation, sandbox_program
from rlinf_graph.nodes.isolation import Isolation
from rlinf_graph.nodes.sandbox_wire import receive, send

STATUS = {
    sandbox_program.OK: "ok",
    sandbox_program.MEMORY: "memory",
    sandbox_program.PROCESSES: "processes",
}


def supervise(connection: socket.socket, walls: Isolation, template: int) -> NoReturn:
    """Run the program that comes through a connection, and answer there.

    The request holds the fields of a `Sandbox` and `code`; the answer `output`, `status` and
    `seconds`, or `refused` with a reason.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    answer: dict[str, Any] = {"refused": "its supervisor was interrupted"}
    folder = os.path.join(walls.base, str(os.getpid()))
    try:
        isolation.die_with(template)
        request = receive(connection)
        if walls.namespaces:
            folder = walls.base
            isolation.enter_own_folder(request["file_mb"])
        else:
            os.mkdir(folder, 0o700)
        answer = _Run(request, folder, walls).result(connection)
        if not walls.namespaces:
            remove_folder(folder)
    except Exception as error:
        answer = {"refused": f"{type(error).__name__}: {error}"}
    finally:
        with contextlib.suppress(OSError):
            send(connection, answer)
        os._exit(0)


class _Run:
    """One program, as its supervisor sees it."""

    def __init__(self, request: dict[str, Any], folder: str, walls: Isolation) -> None:
        self.request = request
        self.folder = folder
        self.walls = walls
        self.output = bytearray()
        self.pipe, self.end = os.pipe()

    def result(self, connection: socket.socket) -> dict[str, Any]:
        """Start the program, wait for its end, or end it."""
        child, said = self._start()
        began = time.monotonic()
        isolated = said == sandbox_program.ISOLATED
        verdict = self._watch(child, connection, began) if isolated else None
        seconds = time.monotonic() - began
        os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still its own
        _, ended, usage = os.wait4(child, 0)
        if not isolated:
            return {"refused": said or "the process was killed while it isolated itself"}
        used = usage.ru_utime + usage.ru_stime
        status = verdict or self._read_rest() or _status(ended, used, self.request["cpu_seconds"])
        output = bytes(self.output[: self.request["output_bytes"]])
        return {"output": output.decode(errors="replace"), "status": status, "seconds": seconds}

    def _start(self) -> tuple[int, str]:
        """The program's process id, and what it says before it runs the code."""
        parent = 0 if self.walls.namespaces else os.getpid()  # 0: outside its namespace
        hearing, saying = os.pipe()
        child = os.fork()
        if child == 0:
            sandbox_program.start(self.request, self.folder, self.walls, parent, self.end, saying)
        os.close(self.end)
        os.close(saying)
        with open(hearing, "rb") as pipe:
            return child, pipe.read().decode()

    def _watch(self, child: int, connection: socket.socket, began: float) -> str | None:
        """Collect output until the program ends; why it has to be ended otherwise."""
        ended = os.pidfd_open(child)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(self.pipe, select.POLLIN)
        poll.register(connection, 0)  # it says when the other end is closed
        while True:
            left = began + self.request["seconds"] - time.monotonic()
            ready = dict(poll.poll(math.ceil(left * 1000))) if left > 0 else {}
            if not ready:
                return "timeout"
            if connection.fileno() in ready:
                return "killed"
            if self.pipe in ready and not self._read():
                poll.unregister(self.pipe)
            if len(self.output) > self.request["output_bytes"]:
                return "output"
            if ended in ready:
                return None

    def _read(self) -> int:
        chunk = os.read(self.pipe, 1 << 16)
        self.output += chunk
        return len(chunk)

    def _read_rest(self) -> str | None:
        """Everything that could write has ended, so the pipe has an end."""
        while len(self.output) <= self.request["output_bytes"]:
            if not self._read():
                return None
        return "output"


def _status(ended: int, used: float, cpu_seconds: int) -> str:
    """From what `wait4` says; the kernel kills a process that has used up its CPU time."""
    if os.WIFSIGNALED(ended):
        return "timeout" if used > cpu_seconds - 0.1 else "killed"
    return STATUS.get(os.WEXITSTATUS(ended), "error")


def remove_folder(folder: str) -> None:
    """Remove a folder however deep it is, whatever its modes, without following links.

    Folders inside are moved beside it first: paths stay short. Nothing else may write there.
    """
    queue = [folder]
    for number, place in enumerate(queue):
        os.chmod(place, 0o700)
        with os.scandir(place) as entries:
            found = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for inner, (path, is_folder) in enumerate(found):
            if is_folder:
                os.chmod(path, 0o700)  # to move a folder is to write in it
                queue.append(f"{folder}.{number}.{inner}")
                os.rename(path, queue[-1])
            else:
                os.unlink(path)
        os.rmdir(place)
