"""What the `Channel` objects of one process have in common."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rlinf_graph.backends.ray.channel import peers, steps
from rlinf_graph.backends.ray.channel.errors import ChannelError
from rlinf_graph.backends.ray.channel.lane import Limits
from rlinf_graph.backends.ray.channel.receiver import Receiver
from rlinf_graph.backends.ray.channel.sender import Sender

RETIRED_S = 0.2
"""Seconds between looks at whether memory of an end that nobody uses is still read."""


class End:
    """This process's producer and consumer of a channel, for all `Channel` objects of it.

    It stays while somebody may read memory of this process.
    """

    def __init__(self, broker: Any) -> None:
        """Make the process known to the broker.

        Raises:
            ChannelError: where the channel does not take it, or does not exist any more.
        """
        self.broker, self.peer, self.users = broker, peers.this_peer(), 0
        try:
            limits: Limits = ray.get(broker.join.remote(self.peer))
        except RayTaskError as error:
            raise ChannelError(str(error.cause)) from None
        except RayError as error:
            raise steps.lost(error) from error
        self.sender = Sender(broker, self.peer.id, shares=limits.shares)
        self.receiver = Receiver(broker, self.peer.id, prioritised=limits.prioritised)

    def leave(self) -> None:
        """Send and give back everything; the death of this process is no failure from now on."""
        with contextlib.suppress(ChannelError):
            steps.block(self.sender.flush())
        ray.get(self.broker.leave.remote(self.peer.id, self.receiver.leave()))

    def unread(self) -> bool:
        """Whether memory of this process is still to be read by others."""
        try:
            freed = ray.get(self.broker.freed.remote(self.peer.id))
        except RayError:
            return False
        if freed is None:
            return False
        self.sender.take_back(freed)
        return self.sender.unread()


_ENDS: dict[Any, End] = {}
_LOCK = threading.Lock()
"""Held for looks at them only, never while anything is waited for."""


def end_of(broker: Any) -> End:
    """The end of a channel in this process, for one more user.

    Raises:
        ChannelError: see `End`.
    """
    name = broker._actor_id
    with _LOCK:
        found = _ENDS.get(name)
        if found is not None:
            found.users += 1
            return found
    made = End(broker)
    with _LOCK:
        found = _ENDS.setdefault(name, made)
        found.users += 1
    if found is not made:
        broker.leave.remote(made.peer.id, made.receiver.leave())
    return found


def drop(end: End) -> None:
    """A `Channel` is collected. That may happen anywhere, also while locks are held, so that a
    thread does the rest."""
    threading.Thread(target=_drop, args=(end,), daemon=True).start()


def _drop(end: End) -> None:
    """One user less; after the last one the end leaves, and stays while its memory is read."""
    with _LOCK:
        end.users -= 1
        if end.users:
            return
        del _ENDS[end.broker._actor_id]
    with contextlib.suppress(RayError):
        end.leave()
    while ray.is_initialized() and end.unread():
        time.sleep(RETIRED_S)


@atexit.register
def _leave_all() -> None:
    """A process that ends in order has not failed."""
    for end in list(_ENDS.values()) if ray.is_initialized() else []:
        with contextlib.suppress(RayError, ChannelError):
            end.leave()
