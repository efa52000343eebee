"""New weights in the middle of generation, where the plan says so.

A thread of its own hears of each version that is published, and fetches it. What the rank generates
is cut between two tokens, the weights are taken over, and generation goes on with what was said so
far, as in Fu et al. 2025 (AReaL), "interruptible rollout workers".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from rlinf_graph.backends.ray.line import Line
from rlinf_graph.backends.ray.post import Lost
from rlinf_graph.backends.ray.state import Buckets
from rlinf_graph.backends.ray.workers.errors import WorkerError
from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.program import Await
from rlinf_graph.nodes.engine import Engine, Key, Sampling
from rlinf_graph.nodes.execution import metric

AGAIN_S = 0.02
"""Seconds until an engine that still generates is asked again to stop: it may not have begun."""


class News:
    """The newest version of a model that is there for a reader, known when it is published.

    Attributes:
        newest: of the delivered versions.
    """

    def __init__(self, line: Line, awaited: Await) -> None:
        """Listen; `line` is for this alone."""
        self.newest = 0
        self._line, self._awaited = line, awaited
        self._changed = threading.Condition()
        self._generating: Engine | None = None
        self._held = 0
        threading.Thread(target=self._listen, daemon=True, name="news").start()

    def cut(self, engine: Engine, held: int, generate: Callable[[], Rollouts]) -> Rollouts | None:
        """What an engine generates with a version, as far as it is when a newer one comes; None,
        and nothing is done, where that has come already."""
        with self._changed:
            if self.newest > held:
                return None
            self._generating, self._held = engine, held
        try:
            return generate()
        finally:
            with self._changed:
                self._generating = None
                self._changed.notify_all()

    def close(self) -> None:
        """Listen no more."""
        self._line.hang_up()

    def _listen(self) -> None:
        model, every = self._awaited.model, self._awaited.every
        try:
            while True:
                newest, weights = self._line.ask("newer", model, every, self.newest)
                self._fetch(weights)
                with self._changed:
                    self.newest = newest
                    while self._generating is not None and newest > self._held:
                        self._generating.abort()
                        self._changed.wait(AGAIN_S)
        except (CompileError, Lost, RayError, WorkerError):
            pass  # the run is over; the rank hears why

    def _fetch(self, members: list[Buckets]) -> None:
        """Bring weights to this machine while generation still goes on."""
        away = [b for buckets in members for b in buckets if not isinstance(b, bytes)]
        if away:
            ray.wait(away, num_returns=len(away))


class Interrupted:
    """An engine that takes weights that are published while it generates.

    Args:
        engine: that generates.
        awaited: what is published.
        news: of it.
        adopt: takes a version over.
    """

    def __init__(
        self, engine: Engine, awaited: Await, news: News, adopt: Callable[[Await, int], None]
    ) -> None:
        self._engine, self._awaited, self._news, self._adopt = engine, awaited, news, adopt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def stream(
        self, prompts: Prompts, sampling: Sampling, key: Key, version: int
    ) -> Iterator[Rollouts]:
        """As the engine does, with the weights that it has; nothing is taken meanwhile."""
        return self._engine.stream(prompts, sampling, key, max(version, self._engine.version))

    def generate(self, prompts: Prompts, sampling: Sampling, key: Key, version: int) -> Rollouts:
        """As the engine does; newer weights are taken before and meanwhile, which marks the tokens
        that follow. Emits how often it went on."""
        engine, times, held = self._engine, 0, max(version, self._engine.version)
        made, held = self._drawn(held, partial(engine.generate, prompts, sampling, key))
        while self._news.newest > held and _is_cut(made, sampling):
            made, held = self._drawn(held, partial(engine.resume, made, sampling, key))
            times += 1
        metric("rollout/interruptions", float(times), reduce="sum")
        return made

    def _drawn(self, held: int, draw: Callable[[int], Rollouts]) -> tuple[Rollouts, int]:
        """What is drawn with the newest version that is there when it begins; and which that is."""
        while True:
            held = self._newest(held)
            made = self._news.cut(self._engine, held, partial(draw, held))
            if made is not None:
                return made, held

    def _newest(self, held: int) -> int:
        newest = self._news.newest
        if newest <= held:
            return held
        self._adopt(self._awaited, newest)
        return newest


def _is_cut(made: Rollouts, sampling: Sampling) -> bool:
    """Whether some response can go on."""
    return bool((~made.finished & (made.response_lengths < sampling.max_tokens)).any())
