"""Time calls as a run would make them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from rlinf_graph.ir.batches import Rollouts
from rlinf_graph.nodes.engine import Engine

REPETITIONS = 5
LEAST = 3
ENOUGH_S = 3.0
"""After which nothing is repeated more than `LEAST` times."""


def timed(
    call: Callable[[], None], prepare: Callable[[], None] = lambda: None
) -> tuple[float, ...]:
    """Seconds of each repetition; the first, which warms up, does not count."""
    taken: list[float] = []
    while len(taken) <= LEAST or (len(taken) <= REPETITIONS and sum(taken) < ENOUGH_S):
        prepare()
        _finish_devices()
        start = time.perf_counter()
        call()
        _finish_devices()
        taken.append(time.perf_counter() - start)
    return tuple(taken[1:])


def _finish_devices() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def watched(engines: Mapping[str, Engine]) -> Iterator[list[Rollouts]]:
    """Everything that the engines generate inside the block."""
    seen: list[Rollouts] = []

    def watching(generate: Callable[..., Rollouts]) -> Callable[..., Rollouts]:
        def generated(*arguments: Any, **named: Any) -> Rollouts:
            seen.append(generate(*arguments, **named))
            return seen[-1]

        return generated

    for engine in engines.values():
        cast("Any", engine).generate = watching(engine.generate)
    try:
        yield seen
    finally:
        for engine in engines.values():
            del cast("Any", engine).generate
