"""The system calls that a sandboxed program may make: a seccomp filter, in BPF.

Everything not named here fails with EPERM: sockets, ptrace, mounts, keys, io_uring, changes of a
file's mode, owner or times. Sources: seccomp(2), and the kernel's tables
`arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import sys
from dataclasses import dataclass

from rlinf_graph.nodes.isolation import call

MACHINES = {"x86_64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1)}
"""Audit number of an architecture, and its column in the tables below."""

PLAIN = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69,
pwritev 296 70, lseek 8 62, close 3 57, close_range 436 436, dup 32 23, dup2 33 -, dup3 292 24,
stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48,
faccessat2 439 439, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50, mkdir 83 -,
mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38,
renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, readlink 89 -,
readlinkat 267 78, ftruncate 77 46, fsync 74 82, fdatasync 75 83, flock 73 32, umask 95 166,
statfs 137 43, fstatfs 138 44, sendfile 40 71, copy_file_range 326 285, pipe 22 -, pipe2 293 59,
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20,
epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290 19, brk 12 214, mmap 9 222,
munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233, msync 26 227, futex 202 98,
set_robust_list 273 99, set_tid_address 218 96, rseq 334 293, membarrier 324 283,
sched_yield 24 124, sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120,
sched_get_priority_max 146 125, sched_get_priority_min 147 126, getcpu 309 168, gettid 186 178,
getpid 39 172, getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
getresuid 118 148, getresgid 120 150, getgroups 115 158, getpgid 121 155, getpgrp 111 -,
getsid 124 156, setsid 112 157, setpgid 109 154, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, pause 34 -, restart_syscall 219 128, nanosleep 35 101,
clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169,
time 201 -, times 100 153, getitimer 36 102, setitimer 38 103, alarm 37 -, getrusage 98 165,
getrlimit 97 163, setrlimit 160 164, sysinfo 99 179, uname 63 160, getrandom 318 278,
arch_prctl 158 -, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95, recvfrom 45 207,
sendto 44 206, shutdown 48 210, getsockopt 55 209, getsockname 51 204
"""
"""Calls whose arguments do not matter: name, number on x86_64, number on aarch64."""

LOOKED_AT = """
open 2 -, openat 257 56, kill 62 129, tgkill 234 131, prlimit64 302 261, ioctl 16 29, fcntl 72 25,
prctl 157 167, socketpair 53 199, clone 56 220, clone3 435 435, fork 57 -, vfork 58 -,
execve 59 221
"""
"""Calls that depend on their arguments, or on the number of processes."""

ALLOW, ERRNO, KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
LOAD, AND, EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06  # opcodes of classic BPF
DENY = ERRNO | errno.EPERM

NEW_NAMESPACES = 0x7E02_0000
TRUNCATED_UNSEEN = (0x200, 0x203)
# A file opened without a right to write and with O_TRUNC: Landlock before version 3 lets it pass.
TERMINAL_AND_FLAGS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
DESCRIPTOR_AND_LOCKS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
# F_DUPFD … F_SETLKW, F_OFD_*LK, F_DUPFD_CLOEXEC; F_SETOWN and F_SETSIG would send signals.
THREAD_NAME = (15, 16)  # PR_SET_NAME, PR_GET_NAME; PR_SET_PDEATHSIG would outlive its supervisor
UNIX, STREAM = 1, 1


@dataclass(frozen=True)
class Check:
    """The low half of an argument, masked, is one of `values`, or with `allowed=False` none."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF
    allowed: bool = True

    def instructions(self) -> list[bytes]:
        """Returns DENY where the check fails, and goes on behind them where it holds."""
        made = [_do(LOAD, 16 + 8 * self.argument), _do(AND, self.mask)]
        count = len(self.values)
        if self.allowed:
            made += [_do(EQUAL, v, yes=count - i) for i, v in enumerate(self.values)]
            return [*made, _do(RETURN, DENY)]
        for value in self.values:
            made += [_do(EQUAL, value, no=1), _do(RETURN, DENY)]
        return made


def install(processes: int) -> None:
    """Bind this process, and all it starts, to the filter; needs `no_new_privs`.

    Raises:
        OSError: where the kernel has no seccomp filters, or for a machine not in `MACHINES`.
    """
    made = program(os.uname().machine, processes)
    buffer = ctypes.create_string_buffer(made, len(made))
    call("prctl", 22, 2, struct.pack("HxxxxxxP", len(made) // 8, ctypes.addressof(buffer)))


@functools.cache
def program(machine: str, processes: int) -> bytes:
    """The filter's instructions, 8 bytes each.

    Args:
        machine: as `uname` calls it.
        processes: with 1 no process and no thread can be started and no signal sent; with more,
            a process-id namespace has to keep signals in.

    Raises:
        OSError: for a machine not in `MACHINES`.
    """
    if machine not in MACHINES or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    audit, column = MACHINES[machine]
    made = [_do(LOAD, 4), _do(EQUAL, audit, yes=1), _do(RETURN, KILL_PROCESS), _do(LOAD, 0)]
    for number in numbers(PLAIN, column).values():
        made += [_do(EQUAL, number, no=1), _do(RETURN, ALLOW)]
    for name, number in numbers(LOOKED_AT, column).items():
        body = _body(_rules(processes)[name])
        made += [_do(EQUAL, number, no=len(body)), *body]
    return b"".join([*made, _do(RETURN, DENY)])


def _body(rule: int | tuple[Check, ...]) -> list[bytes]:
    """What follows a call's number: an answer, or checks that all have to hold."""
    if isinstance(rule, int):
        return [_do(RETURN, rule)]
    return [i for check in rule for i in check.instructions()] + [_do(RETURN, ALLOW)]


def numbers(table: str, column: int) -> dict[str, int]:
    """Number of each call in a table, without those that the architecture does not have."""
    rows = [row.split() for row in table.split(",")]
    return {row[0]: int(row[column + 1]) for row in rows if row[column + 1] != "-"}


def _rules(processes: int) -> dict[str, int | tuple[Check, ...]]:
    one = processes == 1
    start: int | tuple[Check, ...] = ERRNO | errno.EAGAIN if one else ()
    several: int | tuple[Check, ...] = DENY if one else ()
    return {
        "open": (Check(1, TRUNCATED_UNSEEN, 0x203, allowed=False),),
        "openat": (Check(2, TRUNCATED_UNSEEN, 0x203, allowed=False),),
        "prlimit64": (Check(0, (0,)),),
        "ioctl": (Check(1, TERMINAL_AND_FLAGS),),
        "fcntl": (Check(1, DESCRIPTOR_AND_LOCKS),),
        "prctl": (Check(0, THREAD_NAME),),
        "socketpair": (Check(0, (UNIX,)), Check(1, (STREAM,), 0xF)),
        "fork": start,
        "vfork": start,
        "clone": start if one else (Check(0, (0,), NEW_NAMESPACES),),
        "clone3": ERRNO | errno.ENOSYS,  # its flags are out of sight; libraries then use clone
        "execve": several,
        "kill": several,
        "tgkill": several,
    }


def _do(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many to skip after a comparison."""
    return struct.pack("=HBBI", code, yes, no, value)
