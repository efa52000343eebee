"""Where the ranks of a torch process group meet: a store at rank 0, at a port that it holds."""

from __future__ import annotations

import random
import socket
from datetime import timedelta
from pathlib import Path

from torch import distributed as dist

Store = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]  # its documented name
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""First and last port that the system gives to connections, on Linux."""
LOWEST = 20_000
"""Below it are ports of well-known services, and those of Ray's workers up to 19999."""
TRIES = 100


def listen(host: str, ranks: int, timeout: timedelta) -> tuple[Store, str]:
    """The store at rank 0, and the `host:port` where it listens already."""
    store = Store(host, 0, ranks, True, timeout, wait_for_workers=False)
    return store, f"{host}:{store.port}"


def join(address: str, ranks: int, timeout: timedelta) -> Store:
    """The store of another rank, connected to that of rank 0.

    Raises:
        RuntimeError: nobody answers at the address within the time.
    """
    host, _, port = address.rpartition(":")
    return Store(host, int(port), ranks, False, timeout, wait_for_workers=False)


def spare_port() -> int:
    """A port for a store that others open later, as torch does at MASTER_PORT.

    It is outside of what the system gives to connections, so that none takes it meanwhile.
    """
    end = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else LOWEST
    for port in random.sample(range(LOWEST, end), min(TRIES, max(0, end - LOWEST))):
        if _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _is_free(port: int) -> bool:
    """On all of the machine's addresses, as a store listens."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
