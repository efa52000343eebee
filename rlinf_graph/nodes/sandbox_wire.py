"""Messages between a user's process and those that execute programs: JSON behind its length."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one message whole."""
    data = json.dumps(message).encode()
    connection.sendall(struct.pack("!I", len(data)) + data)


def receive(connection: socket.socket) -> dict[str, Any]:
    """Wait for one message.

    Raises:
        EOFError: where the other end closes first.
        OSError: where the connection breaks, or its timeout passes.
    """
    (length,) = struct.unpack("!I", _exactly(connection, 4))
    return json.loads(_exactly(connection, length))


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise EOFError("the other end has closed the connection")
        data += chunk
    return bytes(data)
