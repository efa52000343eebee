"""The filter of system calls, decided on by an interpreter, for machines other than this too."""

import errno
import os
import re
import struct
from pathlib import Path

import pytest

from rlinf_graph.nodes import sandbox_filter
from rlinf_graph.nodes.sandbox_filter import ALLOW, DENY, ERRNO, KILL_PROCESS, MACHINES, program

HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}
TABLES = sandbox_filter.PLAIN + "," + sandbox_filter.LOOKED_AT


def decide(machine: str, processes: int, number: int, *arguments: int, audit: int = 0) -> int:
    """What the kernel would answer: classic BPF over `struct seccomp_data`."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=iIQ6Q", number, audit or MACHINES[machine][0], 0, *padded)
    made = program(machine, processes)
    at, loaded = 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("=HBBI", made, at * 8)
        at += 1
        if code == sandbox_filter.RETURN:
            return value
        if code == sandbox_filter.LOAD:
            (loaded,) = struct.unpack_from("=I", data, value)
        elif code == sandbox_filter.AND:
            loaded &= value
        else:
            assert code == sandbox_filter.EQUAL
            at += yes if loaded == value else no


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("read", (0,), ALLOW),
        ("getsockname", (3,), ALLOW),
        ("openat", (-100 & 2**64 - 1, 1, os.O_RDONLY), ALLOW),
        ("openat", (0, 1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), ALLOW),
        ("openat", (0, 1, os.O_RDWR | os.O_TRUNC), ALLOW),
        ("openat", (0, 1, os.O_RDONLY | os.O_TRUNC), DENY),
        ("openat", (0, 1, os.O_ACCMODE | os.O_TRUNC), DENY),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (1234, 7), DENY),
        ("ioctl", (1, 0x5401), ALLOW),
        ("ioctl", (1, 0x5412), DENY),  # TIOCSTI
        ("fcntl", (1, 4), ALLOW),
        ("fcntl", (1, 8), DENY),  # F_SETOWN
        ("fcntl", (1, 10), DENY),  # F_SETSIG
        ("prctl", (15,), ALLOW),
        ("prctl", (1,), DENY),  # PR_SET_PDEATHSIG
        ("socketpair", (1, 1 | os.O_CLOEXEC), ALLOW),
        ("socketpair", (1, 2), DENY),  # datagrams can be sent to any address
        ("socketpair", (30, 1), DENY),  # AF_TIPC
        ("clone3", (), ERRNO | errno.ENOSYS),
    ],
)
def test_a_call(machine: str, name: str, arguments: tuple[int, ...], answer: int) -> None:
    number = sandbox_filter.numbers(TABLES, MACHINES[machine][1])[name]
    assert decide(machine, 1, number, *arguments) == answer
    assert decide(machine, 8, number, *arguments) == answer


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_start_processes(machine: str) -> None:
    numbers = sandbox_filter.numbers(TABLES, MACHINES[machine][1])
    thread, new_user = 0x3D0F00, 0x1000_0000
    assert decide(machine, 1, numbers["clone"], thread) == ERRNO | errno.EAGAIN
    assert decide(machine, 2, numbers["clone"], thread) == ALLOW
    assert decide(machine, 2, numbers["clone"], thread | new_user) == DENY
    for name in ("kill", "tgkill", "execve"):
        assert decide(machine, 1, numbers[name]) == DENY
        assert decide(machine, 2, numbers[name]) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_every_other_call_is_denied(machine: str) -> None:
    known = sandbox_filter.numbers(TABLES, MACHINES[machine][1]).values()
    answers = {decide(machine, 8, n) for n in range(1024) if n not in known}
    assert answers == {DENY}
    assert decide(machine, 8, 0x4000_0000 + 41) == DENY  # socket by the x32 numbers
    assert decide(machine, 8, 0, audit=0x4000_0003) == KILL_PROCESS  # i386 numbers


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_the_kernel_s(machine: str) -> None:
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"no kernel headers here: {header}")
    text = header.read_text(encoding="utf-8")
    kernel = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", text))
    kernel.setdefault("newfstatat", kernel.get("fstatat", ""))
    kernel["newfstatat"] = kernel.get("fstatat", kernel["newfstatat"])
    for name, number in sandbox_filter.numbers(TABLES, MACHINES[machine][1]).items():
        assert kernel[name] == str(number), name


def test_a_machine_without_a_table() -> None:
    with pytest.raises(OSError, match="no table of system calls for vax"):
        program("vax", 1)
