"""System calls that shut a process in on Linux: namespaces, Landlock, capabilities, limits.

They run in a process that was started for the purpose (`sandbox_template`), never in the user's.
Sources: namespaces(7), user_namespaces(7), mount_setattr(2), pivot_root(2), landlock(7),
capabilities(7) and prctl(2) of the Linux man-pages; the constants are from the kernel's uapi
headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534
"""User and group id that own nothing, by convention (`nobody`)."""

FOLDER = "/tmp"
"""Where the private folder of a process with its own mounts is."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")
FILES = ("/etc/ld.so.cache", "/etc/localtime")

NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
NEW_USER, NEW_PIDS, NEW_NET = 0x1000_0000, 0x2000_0000, 0x4000_0000
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC = 1, 2, 4, 8  # the same bits in mount(2), mount_setattr(2)
BIND, RECURSIVE, PRIVATE, DETACH = 0x1000, 0x4000, 0x4_0000, 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PIVOT_ROOT, MOUNT_SETATTR = {"x86_64": 155, "aarch64": 41}, 442
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
SET_PDEATHSIG, SET_NO_NEW_PRIVS, CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL = 1, 38, 47, 4
CAPABILITY_VERSION = 0x2008_0522

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1, 2, 4, 8, 1 << 14
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
READABLE = EXECUTE | READ_FILE | READ_DIR
# All up to TRUNCATE but EXECUTE, MAKE_CHAR, MAKE_SOCK, MAKE_FIFO and MAKE_BLOCK.
WRITABLE = 0x7FFF & ~(EXECUTE | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11)


@dataclass(frozen=True)
class Isolation:
    """What shuts programs in on this machine; the filter of `sandbox_filter` always does."""

    namespaces: bool
    landlock: bool
    base: str
    """Folder of the programs' folders; with namespaces each program sees its own in its place."""


@functools.lru_cache(1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library.

    Raises:
        OSError: where it returns a negative number.
    """
    made = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    function = getattr(_libc(), name)
    function.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    result = function(*made)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


@functools.cache
def readable_paths() -> tuple[str, ...]:
    """Python's library and executable, and shared libraries; none inside another, links kept."""
    prefix = Path(sys.base_prefix)
    places = [*LIBRARIES, str(prefix / sys.platlibdir), str(prefix / "lib"), *FILES]
    places += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sys.executable]
    kept: list[str] = []
    for place in places:
        if place and not _within(place, kept) and os.path.exists(place):
            kept.append(place)
    return tuple(kept)


def _within(place: str, folders: Iterable[str]) -> bool:
    return any(place == folder or place.startswith(f"{folder}/") for folder in folders)


def enter_namespaces() -> None:
    """Leave the machine's mounts, network, host name and System V IPC behind.

    The new root holds `readable_paths` and devices, all read-only, and an empty `FOLDER`.

    Raises:
        OSError: where the kernel, or what confines this process already, does not allow it.
    """
    apart = NEW_MOUNTS | NEW_NET | NEW_IPC | NEW_UTS
    try:
        call("unshare", apart)
    except PermissionError:  # no privileges: a user namespace gives them, within itself
        user, group = os.getuid(), os.getgid()
        call("unshare", apart | NEW_USER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")
    call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    # Over /proc, which exists everywhere and holds nothing that the new root needs.
    call("mount", b"tmpfs", b"/proc", b"tmpfs", NO_SUID, b"mode=755")
    _fill(Path("/proc"))
    _restrict_mounts(b"/proc", READ_ONLY | NO_SUID)
    os.chdir("/proc")
    # The old root on top of the new one, and then off it: pivot_root(2), NOTES.
    call("syscall", PIVOT_ROOT[os.uname().machine], b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/")


def _fill(root: Path) -> None:
    """Bind what is to be read below `root`; links to what is bound are made again."""
    places = (*readable_paths(), *DEVICES)
    for place in places:
        inside = root / place.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        if os.path.islink(place) and _within(os.path.realpath(place), places):
            inside.symlink_to(os.readlink(place))
            continue
        inside.mkdir() if os.path.isdir(place) else inside.touch()
        call("mount", place.encode(), bytes(inside), None, BIND | RECURSIVE, None)
    (root / FOLDER.lstrip("/")).mkdir()
    (root / "dev/shm").symlink_to(FOLDER)  # where named semaphores are made


def _restrict_mounts(place: bytes, flags: int) -> None:
    """Set flags on a mount and on all below it."""
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, place, AT_RECURSIVE, attributes, len(attributes))


def enter_own_folder(megabytes: int) -> None:
    """Give this process its own `FOLDER`, in memory; its children a process-id namespace."""
    call("unshare", NEW_MOUNTS | NEW_PIDS)
    flags = NO_SUID | NO_DEVICES | NO_EXEC
    options = f"size={megabytes}m,nr_inodes=4096,mode=1777".encode()
    call("mount", b"tmpfs", FOLDER.encode(), b"tmpfs", flags, options)


@functools.cache
def landlock_version() -> int:
    """The kernel's version of Landlock; 0 where there is none."""
    try:
        return call("syscall", LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def restrict_files(folder: str) -> None:
    """Allow reading `readable_paths` and writing in `folder`; no other file can be opened.

    Landlock alone does not see changes of mode, owner and times, nor, before version 3,
    truncation: `sandbox_filter` denies those.

    Raises:
        OSError: without Landlock.
    """
    version = landlock_version()
    size = 8 if version < 4 else 16 if version < 6 else 24  # network since 4, scopes since 6
    handled = _handled()
    attributes = struct.pack("QQQ", handled, 0b11, 0b11)[:size]
    ruleset = call("syscall", LANDLOCK_CREATE, attributes, size, 0)
    for place, rights in ((folder, WRITABLE & handled), *reading_rules()):
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, descriptor)
        call("syscall", LANDLOCK_ADD, ruleset, 1, rule, 0)
        os.close(descriptor)
    call("syscall", LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


@functools.cache
def reading_rules() -> tuple[tuple[str, int], ...]:
    """Paths that any program may use, and its rights there."""
    read = [(p, READABLE if os.path.isdir(p) else READABLE & OF_A_FILE) for p in readable_paths()]
    used = [(p, (READ_FILE | WRITE_FILE | TRUNCATE) & _handled()) for p in DEVICES]
    return (*read, *used)


def _handled() -> int:
    """Every right that this kernel's Landlock knows, up to TRUNCATE."""
    return (1 << min(landlock_version() + 12, 15)) - 1


def leave_root() -> None:
    """Become nobody, where this is root and everybody may read Python's library.

    The number of processes is not limited for root: setrlimit(2).
    """
    if os.geteuid() == 0 and os.stat(os.__file__).st_mode & 0o004:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """Give up every capability, and that of gaining any by running another program."""
    call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with contextlib.suppress(OSError):  # before Linux 4.3 there are none to clear
        call("prctl", CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    call("capset", struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends.

    Args:
        parent: its process id as this process sees it; 0 for one outside its namespace.

    Raises:
        ProcessLookupError: where the parent has ended already.
    """
    call("prctl", SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent process has ended")
