"""Programs that a model wrote: executed one by one, shut in, with hard limits."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

from rlinf_graph.dsl.option import misfit
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.value import struct
from rlinf_graph.nodes.sandbox_host import STARTING, refusal, template_for

Wall = Literal["namespaces", "landlock"]
Status = Literal["ok", "error", "timeout", "memory", "processes", "killed", "output"]


@struct
class Sandbox:
    """Executes Python programs that a model wrote, with hard limits and nothing in reach.

    Every program runs in a fresh process with Python's standard library and a private folder, which
    is removed afterwards. It has no network, sees no other process, reads none of the user's files
    and none of the environment. This takes Linux with unprivileged user namespaces or Landlock;
    where there is neither, nothing is executed.

    Attributes:
        seconds: wall-clock time.
        cpu_seconds: processor time of each process, in whole seconds.
        memory_mb: address space of each process, about 30 MB of Python's own included.
        processes: how many processes and threads there may be at once. More than one needs
            namespaces.
        output_bytes: what is kept of stdout and stderr together; printing more ends the program.
        file_mb: size of a file; with namespaces of all files together, which are kept in memory.
        walls: what may be used to shut a program in, each where it works.
    """

    seconds: float = 2.0
    cpu_seconds: int = 2
    memory_mb: int = 256
    processes: int = 1
    output_bytes: int = 10_000
    file_mb: int = 16
    walls: tuple[Wall, ...] = get_args(Wall)

    def __post_init__(self) -> None:
        """Refuse limits under which no program can run.

        Raises:
            CompileError: RG0104; RG0511, for no `walls`.
        """
        if found := misfit(self):
            name, wanted, value = found
            raise fail("RG0104", f"Sandbox: `{name}` is {value!r}", help=(f"it is a {wanted}",))
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
                message = f"Sandbox: `{name}` is {value!r}; it has to be at least {least}"
                default = next(f.default for f in dataclasses.fields(self) if f.name == name)
                raise fail("RG0104", message, help=(f"Sandbox({name}={default})",))
        if not self.walls:
            reason = "`walls` leaves nothing that could isolate them"
            raise refusal(reason, help_text=(f"Sandbox(walls={get_args(Wall)})",))


LEAST = {
    "seconds": 0.001,
    "cpu_seconds": 1,
    "memory_mb": 64,
    "processes": 1,
    "output_bytes": 1,
    "file_mb": 1,
}
"""The smallest values of a sandbox's limits: in 64 MB Python itself has room."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        output: what it printed, on stdout and stderr, at most `output_bytes`, and the last line of
            its exception.
        status: `ok`; `error` (an exception, or an exit code other than 0); `timeout` (of either
            clock); `memory` and `processes` (an exception because the limit was reached);
            `killed` (by a signal, such as a segmentation fault); `output` (too much of it).
        seconds: wall-clock time.
    """

    output: str
    status: Status
    seconds: float


def run_code(sandbox: Sandbox, code: str) -> Outcome:
    """Execute a program and wait for its end; several threads may call this at once.

    The first call starts a process that stays; from then on a program takes a few milliseconds.

    Raises:
        CompileError: RG0511, where programs cannot be isolated: the program was not executed.
    """
    request = dataclasses.asdict(sandbox) | {"code": code}
    for _attempt in range(2):  # where memory runs out, the kernel may kill the template
        template = template_for(sandbox.walls)
        if sandbox.processes > 1 and (reason := template.report["namespaces"]):
            message = "to limit processes to more than one, namespaces are needed"
            raise refusal(message, (f"namespaces: {reason}",), ("Sandbox(processes=1)",))
        answer = template.execute(request, sandbox.seconds + STARTING)
        if answer is not None and "refused" in answer:
            raise refusal("a program could not be isolated", (answer["refused"],))
        if answer is not None:
            return Outcome(**answer)
    raise refusal("the process that programs are forked from was killed twice")
