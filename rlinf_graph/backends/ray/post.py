"""Messages between the ranks of a run and its board, over sockets.

A call of a Ray actor takes both sides about a millisecond; most messages here are a few numbers,
and an iteration has hundreds. On one machine they go over a Unix socket, else over TCP. What has
references to Ray's object store in it goes as a call, because Ray has to count them.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import pickle
import secrets
import selectors
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rlinf_graph.backends.ray.channel.peers import machine

HEAD = 8
"""Bytes before each message that say how long it is."""

READ = 1 << 18
"""Bytes that are read at once."""


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
    """Hears each client's messages in their order, in a thread of its own: an event loop would take
    longer over a message than everything else that it takes part in."""

    def __init__(self, hear: Callable[..., None]) -> None:
        """`hear(reply, *message)` may call `reply(answer)`, now or later, from any thread."""
        self._hear = hear
        self._token = secrets.token_bytes(32)
        self._ready = selectors.DefaultSelector()

    def start(self, host: str) -> Address:
        """Listen on this machine, at `host` for the others."""
        path = f"\0rlinf-graph-{secrets.token_hex(16)}"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = [socket.create_server((host, 0), family=family)]
        if hasattr(socket, "AF_UNIX"):
            listening.append(socket.socket(socket.AF_UNIX))
            listening[-1].bind(path)
            listening[-1].listen()
        for one in listening:
            self._ready.register(one, selectors.EVENT_READ, partial(self._accept, one))
        threading.Thread(target=self._serve, daemon=True, name="post").start()
        return Address(machine(), path, host, listening[0].getsockname()[1], self._token)

    def _serve(self) -> None:
        while True:
            for key, mask in self._ready.select():
                key.data(mask)

    def _accept(self, listening: socket.socket, _mask: int) -> None:
        with contextlib.suppress(OSError):  # who has gone again
            client, _address = listening.accept()
            client.setblocking(False)
            if listening.family in (socket.AF_INET, socket.AF_INET6):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made = _Connection(client, self._ready, self._hear, self._token)
            self._ready.register(client, selectors.EVENT_READ, made.work)


class _Connection:
    """One client, at the server. When it is gone, a rank is done or dead; Ray tells which."""

    def __init__(
        self,
        client: socket.socket,
        ready: selectors.BaseSelector,
        hear: Callable[..., None],
        token: bytes,
    ) -> None:
        self._socket, self._ready, self._hear, self._token = client, ready, hear, token
        self._data, self._unsent = bytearray(), bytearray()
        self._sending, self._full = threading.Lock(), False

    def work(self, mask: int) -> None:
        """Take in what has come, send what could not be sent yet."""
        try:
            if mask & selectors.EVENT_WRITE:
                with self._sending:
                    self._send()
            if mask & selectors.EVENT_READ:
                self._read()
        except OSError:
            self._close()
        except Exception:
            logging.getLogger(__name__).exception("a message could not be heard")
            self._close()

    def _read(self) -> None:
        data = self._socket.recv(READ)
        if not data:
            self._close()
            return
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
            self._hear(self._reply, *message)

    def _next(self) -> Any:
        """The next message, if it has come as a whole."""
        end = HEAD + int.from_bytes(self._data[:HEAD], "little")
        if len(self._data) < max(HEAD, end):
            return None
        message = pickle.loads(self._data[HEAD:end])
        del self._data[:end]
        return message

    def _reply(self, answer: Any) -> None:
        with self._sending, contextlib.suppress(OSError):  # it is gone: `work` sees that, too
            self._unsent += _framed(answer)
            self._send()

    def _send(self) -> None:
        """As much as the client takes now."""
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: self._socket.send(self._unsent)]
        if self._full != bool(self._unsent):
            self._full = bool(self._unsent)
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._full else 0)
            self._ready.modify(self._socket, wanted, self.work)

    def _close(self) -> None:
        with self._sending:
            self._ready.unregister(self._socket)
            self._socket.close()


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
        """Send nothing more; a thread that waits for an answer ends, too."""
        with contextlib.suppress(OSError):  # the server was first
            self._socket.shutdown(socket.SHUT_RDWR)
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
