"""Messages between the ranks of a run and its board, over sockets.

A call of a Ray actor takes both sides about a millisecond; most messages here are a few numbers,
and an iteration has hundreds. On one machine they go over a Unix socket, else over TCP. What has
references to Ray's object store in it goes as a call, because Ray has to count them.
"""

from __future__ import annotations

import asyncio
import hmac
import pickle
import secrets
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from rlinf_graph.backends.ray.channel.peers import machine

HEAD = 8
"""Bytes before each message that say how long it is."""


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
    """Hears each client's messages in their order."""

    def __init__(self, hear: Callable[..., None]) -> None:
        """`hear(reply, *message)` may call `reply(answer)`, now or later."""
        self._hear = hear

    async def start(self, host: str) -> Address:
        """Listen on this machine, at `host` for the others."""
        token, path = secrets.token_bytes(32), f"\0rlinf-graph-{secrets.token_hex(16)}"
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self._hear, token), host, 0)
        if hasattr(socket, "AF_UNIX"):
            await loop.create_unix_server(lambda: _Connection(self._hear, token), path)
        return Address(machine(), path, host, server.sockets[0].getsockname()[1], token)


class _Connection(asyncio.Protocol):
    """One client, at the server. When it is gone, a rank is done or dead; Ray tells which."""

    def __init__(self, hear: Callable[..., None], token: bytes) -> None:
        self._hear, self._token = hear, token
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._token:
            size = len(self._token)
            if len(self._data) < size:
                return
            if not hmac.compare_digest(bytes(self._data[:size]), self._token):
                self._close()
                return
            self._token = b""
            del self._data[:size]
        while (message := self._next()) is not None:
            try:
                self._hear(self._reply, *message)
            except Exception:
                self._close()
                raise

    def _next(self) -> Any:
        """The next message, if it has come as a whole."""
        end = HEAD + int.from_bytes(self._data[:HEAD], "little")
        if len(self._data) < max(HEAD, end):
            return None
        message = pickle.loads(self._data[HEAD:end])
        del self._data[:end]
        return message

    def _reply(self, answer: Any) -> None:
        if self._transport is not None:
            self._transport.write(_framed(answer))

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


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
