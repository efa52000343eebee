"""Names of channels in a Ray cluster: each belongs to one channel until that is closed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv

from rlinf_graph.backends.ray.channel.errors import ChannelError, NameTaken

_SPACE = b"rlinf_graph.channels"


@contextmanager
def claimed(name: str) -> Iterator[str]:
    """The name of a new broker actor; the channel's name stays free where the block raises.

    Raises:
        NameTaken: while the name belongs to a channel that is not closed.
    """
    unique = f"channel-{name}-{uuid.uuid4().hex[:8]}"
    entry = name.encode(), unique.encode()
    if internal_kv._internal_kv_put(*entry, overwrite=False, namespace=_SPACE):
        held = internal_kv._internal_kv_get(name.encode(), namespace=_SPACE)
        if held is not None and _open(held.decode()):
            raise NameTaken(f"channel {name!r} exists and is not closed")
        internal_kv._internal_kv_put(*entry, overwrite=True, namespace=_SPACE)
    try:
        yield unique
    except BaseException:
        internal_kv._internal_kv_del(name.encode(), namespace=_SPACE)
        raise


def broker(name: str) -> Any:
    """The broker of the open channel of a name.

    Raises:
        ChannelError: where there is none.
    """
    held = internal_kv._internal_kv_get(name.encode(), namespace=_SPACE)
    try:
        if held is None:
            raise ValueError(name)
        return ray.get_actor(held.decode())
    except ValueError:
        raise ChannelError(f"no channel is open under the name {name!r}") from None


def release(name: str, actor: Any) -> None:
    """The channel of a broker is closed: its name is free, unless a newer channel has it."""
    held = internal_kv._internal_kv_get(name.encode(), namespace=_SPACE)
    try:
        if held is not None and ray.get_actor(held.decode()) == actor:
            internal_kv._internal_kv_del(name.encode(), namespace=_SPACE)
    except ValueError:
        return


def _open(actor: str) -> bool:
    try:
        return not ray.get(ray.get_actor(actor).is_over.remote())
    except (ValueError, RayError):
        return False
