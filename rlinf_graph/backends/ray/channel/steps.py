"""One procedure for callers that block and for callers that await.

A procedure is a generator: it yields a reference that it needs the value of and is sent the value.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from rlinf_graph.backends.ray.channel.errors import ChannelError, PeerFailed

T = TypeVar("T")
Steps = Generator[Any, Any, T]


def block(steps: Steps[T]) -> T:
    """Run a procedure in this thread."""
    try:
        reference = next(steps)
        while True:
            reference = steps.send(_got(reference))
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


async def wait(steps: Steps[T]) -> T:
    """Run a procedure in this event loop. Where it is cancelled, nothing is lost."""
    try:
        reference = next(steps)
        while True:
            reference = steps.send(await _awaited(reference))
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


def _got(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayError as error:
        raise lost(error) from error


async def _awaited(reference: Any) -> Any:
    try:
        return await reference
    except RayError as error:
        raise lost(error) from error


def lost(error: RayError) -> ChannelError:
    """What it means when Ray cannot deliver."""
    return PeerFailed(f"an item or the broker is gone: {type(error).__name__}: {error}")
