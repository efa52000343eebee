"""One rank's way to the board and, through the object store, to the other ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from rlinf_graph.backends.edges import Edges
from rlinf_graph.backends.ray import wire
from rlinf_graph.ir.batch import Batch

Output = tuple[int, tuple[str, ...]]
"""The number of a node's output, and the field of it that an edge carries."""


class Line:
    """Calls of the board: those that wait for an answer, and those that only tell."""

    def __init__(self, board: Any) -> None:
        """Nothing has been told."""
        self._board = board
        self._told: list[Any] = []

    def ask(self, method: str, *arguments: Any) -> Any:
        """Wait for what the board answers.

        Raises:
            CompileError: the cause, when the run has failed.
        """
        return ray.get(self._call(method, *arguments))

    def tell(self, method: str, *arguments: Any) -> None:
        """Go on without an answer."""
        self._told.append(self._call(method, *arguments))

    def settle(self) -> None:
        """Wait until everything that was told is known.

        Raises:
            RayError: where the board could not take it in.
        """
        ray.get(self._told)
        self._told = []

    def _call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._board, method).remote(*arguments)


class Mailbox:
    """What a rank sends and receives. A batch is written once and read once, however often it is
    sent or cut."""

    def __init__(self, line: Line) -> None:
        """Nothing has come."""
        self._line = line
        self._came = Edges()
        self._held: dict[tuple[str, int], set[int]] = {}
        self._written: dict[Output, Any] = {}
        self._open: set[tuple[str, int]] = set()

    def take(self, edge: str, iteration: int, rows: NDArray[np.int64]) -> Batch:
        """Wait for samples of an edge."""
        if not self._came.has(edge, iteration, rows):
            told: dict[int, Any] = self._line.ask("get", edge, iteration, rows)
            held = self._held.setdefault((edge, iteration), set())
            new = {number: batch for number, (batch,) in told.items() if number not in held}
            for batch in ray.get(list(new.values())):
                self._came.put(edge, iteration, wire.unpack(batch))
            held.update(new)
        return self._came.take(edge, iteration, rows)

    def put(self, edge: str, iteration: int, output: Output, value: Batch) -> None:
        """Hand an output to an edge, when there is room."""
        if (edge, iteration) not in self._open:
            self._line.ask("room", edge, iteration)
            self._open = {place for place in self._open if place[0] != edge} | {(edge, iteration)}
        if output not in self._written:
            self._written[output] = ray.put(wire.pack(value))
        rows = np.asarray(value.index.cpu(), dtype=np.int64)
        self._line.tell("put", edge, iteration, rows, [self._written[output]])

    def renew(self) -> None:
        """The outputs are new ones now."""
        self._written = {}

    def free(self, edge: str, iteration: int) -> None:
        """Nothing more is needed of an iteration of an edge."""
        self._came.drop(edge, iteration)
        self._held.pop((edge, iteration), None)
        self._line.tell("free", edge, iteration)
