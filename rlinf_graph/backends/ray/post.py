"""Messages between the ranks of a run and its board, over sockets.

A call of a Ray actor takes both sides about a millisecond; most messages here are a few numbers, and
an iteration has hundreds. On one machine they go over a Unix socket, else over TCP. What has
references to Ray's object store in it goes as a call, because Ray has to count them.
"""

from __future__ import annotations

import asyncio
import hmac
import pickle
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from rlinf_graph.backends.ray.channel.peers import machine

HEAD = 8
"""Bytes before each message that say how long it is."""

BUFFER = 1 << 20
"""Bytes that are read ahead of a message."""


class Address(NamedTuple):
    """Where a server listens: the machine and its socket there, and for others host and port.
    Who sends the token first is heard."""

    machine: str
    path: str
    host: str
    port: int
    token: bytes


class Lost(ConnectionError):
    """The other end is gone."""


class Server:
    """Hears each client's messages in their order, and answers those that want an answer."""

    def __init__(self, hear: Callable[..., Awaitable[tuple[Any, bool]]]) -> None:
        """`hear(*message)` gives an answer, and whether it is wanted."""
        self._hear = hear
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str) -> Address:
        """Listen on this machine, at `host` for the others."""
        token, path = secrets.token_bytes(32), f"\0rlinf-graph-{secrets.token_hex(16)}"

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(reader, writer, token)

        server = await asyncio.start_server(serve, host, 0, limit=BUFFER)
        if hasattr(socket, "AF_UNIX"):
            await asyncio.start_unix_server(serve, path, limit=BUFFER)
        return Address(machine(), path, host, server.sockets[0].getsockname()[1], token)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes
    ) -> None:
        try:
            if not hmac.compare_digest(await reader.readexactly(len(token)), token):
                return
            while True:
                size = int.from_bytes(await reader.readexactly(HEAD), "little")
                message = pickle.loads(await reader.readexactly(size))
                answer, wanted = await self._hear(*message)
                if wanted:
                    writer.write(_framed(answer))
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a rank is done; where its process has died, Ray tells the driver
        finally:
            writer.close()


class Client:
    """One thread's way to a server."""

    def __init__(self, address: Address) -> None:
        """Connect.

        Raises:
            Lost: where nobody listens any more.
        """
        try:
            if address.machine == machine() and hasattr(socket, "AF_UNIX"):
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.connect(address.path)
            else:
                self._socket = socket.create_connection((address.host, address.port))
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(address.token)
        except OSError as error:
            raise Lost(f"the board cannot be reached: {error}") from error

    def send(self, *message: Any) -> None:
        """Send a message.

        Raises:
            Lost: when the server is gone.
        """
        try:
            self._socket.sendall(_framed(message))
        except OSError as error:
            raise Lost(f"the board is gone: {error}") from error

    def receive(self) -> Any:
        """Wait for the answer to the last message that wants one.

        Raises:
            Lost: when the server is gone.
        """
        return pickle.loads(self._read(int.from_bytes(self._read(HEAD), "little")))

    def close(self) -> None:
        """Send nothing more."""
        self._socket.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, have = memoryview(data), 0
        while have < size:
            try:
                got = self._socket.recv_into(view[have:])
            except OSError as error:
                raise Lost(f"the board is gone: {error}") from error
            if not got:
                raise Lost("the board is gone")
            have += got
        return data


def _framed(message: Any) -> bytes:
    data = pickle.dumps(message, protocol=5)
    return len(data).to_bytes(HEAD, "little") + data
