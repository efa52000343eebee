"""The process beside each program: gives it a folder, waits, ends it, reports, and cleans up."""

from __future__ import annotations

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
    try:
        isolation.die_with(template)  # where it has ended, the user starts another
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        request = receive(connection)
        try:
            answer = _in_a_folder(request, connection, walls)
        except Exception as error:
            answer = {"refused": f"{type(error).__name__}: {error}"}
        send(connection, answer)
    finally:
        os._exit(0)


def _in_a_folder(
    request: dict[str, Any], connection: socket.socket, walls: Isolation
) -> dict[str, Any]:
    if walls.namespaces:
        isolation.enter_own_folder(request["file_mb"])
        return _Run(request, walls.base, walls).result(connection)
    folder = os.path.join(walls.base, str(os.getpid()))
    os.mkdir(folder, 0o700)
    try:
        return _Run(request, folder, walls).result(connection)
    finally:
        remove_folder(folder)


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
            ready = dict(poll.poll(max(0, math.ceil(left * 1000))))
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
            if left <= 0:  # what there was has been read
                return "timeout"

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
    """From what `wait4` says.

    The kernel kills a process that has used up its CPU time, which it counts in ticks; `used` is
    measured, and on a busy machine somewhat less.
    """
    if os.WIFSIGNALED(ended):
        by_the_kernel = os.WTERMSIG(ended) in (signal.SIGKILL, signal.SIGXCPU)
        return "timeout" if by_the_kernel and used > cpu_seconds / 2 else "killed"
    return STATUS.get(os.WEXITSTATUS(ended), "error")


def remove_folder(folder: str) -> None:
    """Remove a folder however deep it is, whatever its modes, without following links.

    Folders further inside are moved up to it first: paths stay short. Nothing else may write there.
    """
    queue, unique = [folder], os.urandom(8).hex()
    for number, place in enumerate(queue):
        os.chmod(place, 0o700)
        with os.scandir(place) as entries:
            found = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for inner, (path, is_folder) in enumerate(found):
            if is_folder:
                os.chmod(path, 0o700)  # to move a folder is to write in it
                queue.append(f"{folder}/{unique}.{number}.{inner}")
                os.rename(path, queue[-1])
            else:
                os.unlink(path)
    for place in reversed(queue):
        os.rmdir(place)
