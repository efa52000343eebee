"""Calls in the order in which they were made: Ray may start them in another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    """Calls count from 0; each waits for those before it."""

    def __init__(self) -> None:
        """None has been made."""
        self._next, self._waiting = 0, dict[int, asyncio.Future[None]]()

    @contextlib.asynccontextmanager
    async def of(self, number: int) -> AsyncIterator[None]:
        """Inside, all calls before this one have passed their block."""
        if number != self._next:
            self._waiting[number] = asyncio.get_running_loop().create_future()
            await self._waiting[number]
            del self._waiting[number]
        try:
            yield
        finally:
            self._next += 1
            if self._next in self._waiting:
                self._waiting[self._next].set_result(None)
