"""One rank's way to the board and, through the object store, to the other ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray

from rlinf_graph.backends.edges import Edges, Rows
from rlinf_graph.backends.ray import wire
from rlinf_graph.ir.batch import Batch

Output = tuple[int, tuple[str, ...]]
"""The number of a node's output, and the field of it that an edge carries."""

Call = tuple[str, tuple[Any, ...]]
"""A method of the board, and its arguments."""


class Line:
    """Calls of the board: those that wait for an answer, and those that only tell.

    What is told goes out together, with the next question or before the rank works on.
    """

    def __init__(self, board: Any) -> None:
        """Nothing has been told."""
        self._board = board
        self._told: list[Call] = []
        self._sent: list[Any] = []

    def ask(self, method: str, *arguments: Any) -> Any:
        """Wait for what the board answers.

        Raises:
            CompileError: the cause, when the run has failed.
        """
        told, self._told = self._told, []
        return ray.get(self._board.hear.remote(told, (method, arguments)))

    def tell(self, method: str, *arguments: Any) -> None:
        """Go on without an answer."""
        self._told.append((method, arguments))

    def flush(self) -> None:
        """Send what has been told, when what was sent before has come.

        Raises:
            RayError: where the board could not take that in.
        """
        if self._told:
            self.settle()
            told, self._told = self._told, []
            self._sent = [self._board.hear.remote(told)]

    def settle(self) -> None:
        """Wait until everything that was sent has come.

        Raises:
            RayError: where the board could not take it in.
        """
        ray.get(self._sent)
        self._sent = []


class Mailbox:
    """What a rank sends and receives. A batch is written once and read once, however often it is
    sent or cut."""

    def __init__(self, line: Line) -> None:
        """Nothing has come."""
        self._line = line
        self._came = Edges()
        self._held: dict[tuple[str, int], set[int]] = defaultdict(set)
        self._written: dict[Output, Any] = {}
        self._open: dict[str, int] = {}

    def wait(self, iteration: int, wanted: Mapping[str, Rows]) -> None:
        """Wait until samples of some edges are here."""
        lacking = {
            edge: rows for edge, rows in wanted.items() if not self._came.has(edge, iteration, rows)
        }
        if not lacking:
            return
        told: dict[str, dict[int, Any]] = self._line.ask("get", iteration, lacking)
        new = [
            (edge, number, batch)
            for edge, batches in told.items()
            for number, (batch,) in batches.items()
            if number not in self._held[edge, iteration]
        ]
        batches = ray.get([batch for _edge, _number, batch in new])
        for (edge, number, _reference), batch in zip(new, batches, strict=True):
            self._came.put(edge, iteration, wire.unpack(batch))
            self._held[edge, iteration].add(number)

    def take(self, edge: str, iteration: int, rows: Rows) -> Batch:
        """Samples of an edge, which have been waited for."""
        return self._came.take(edge, iteration, rows)

    def open(self, iteration: int, edges: list[str]) -> None:
        """Wait until some edges have room for an iteration."""
        lacking = [edge for edge in edges if self._open.get(edge) != iteration]
        if lacking:
            self._line.ask("room", iteration, lacking)
            self._open |= dict.fromkeys(lacking, iteration)

    def put(self, edge: str, iteration: int, output: Output, value: Batch) -> bool:
        """Hand an output to an edge that has room; whether it had not been sent yet."""
        new = output not in self._written
        if new:
            self._written[output] = ray.put(wire.pack(value))
        rows = np.asarray(value.index.cpu(), dtype=np.int64)
        self._line.tell("put", edge, iteration, rows, [self._written[output]])
        return new

    def renew(self) -> None:
        """The outputs are new ones now."""
        self._written = {}

    def free(self, edge: str, iteration: int) -> None:
        """Nothing more is needed of an iteration of an edge."""
        self._came.drop(edge, iteration)
        self._held.pop((edge, iteration), None)
        self._line.tell("free", edge, iteration)
