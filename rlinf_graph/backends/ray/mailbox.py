"""One rank's way to the board and, through the object store, to the other ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import ray

from rlinf_graph.backends.edges import Edges, Rows, index_of, require_share
from rlinf_graph.backends.ray import wire
from rlinf_graph.ir import packed
from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.position import Moment

Output = tuple[int, tuple[str, ...], str, str]
"""The number of a node's output, the field of it that an edge carries, what was gathered in its
stead, and the field that keeps samples back."""

Place = tuple[str, Moment]
"""An edge at a moment."""

SMALL = 65_536
"""Bytes of a batch that travels with the message: a write and a read of the object store take about
a millisecond of each side, whatever the size."""

Call = tuple[str, tuple[Any, ...]]
"""A method of the board, and its arguments."""


class Line:
    """Calls of the board: those that wait for an answer, and those that only tell.

    What is told goes out together, with the next question or before the rank works on.
    """

    def __init__(self, board: Any, who: tuple[str, int] | None = None) -> None:
        """Nothing has been told. `who` is the rank, for reports of who waits for whom."""
        self._board, self._who = board, who
        self._told: list[Call] = []
        self._sent: list[Any] = []

    def ask(self, method: str, *arguments: Any) -> Any:
        """Wait for what the board answers.

        Raises:
            CompileError: the cause, when the run has failed.
        """
        told, self._told = self._told, []
        return ray.get(self._board.hear.remote(told, (method, arguments), self._who))

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

    def settled(self) -> bool:
        """Whether everything that was sent has come, seen from any thread."""
        sent = self._sent
        return not sent or len(ray.wait(sent, num_returns=len(sent), timeout=0)[0]) == len(sent)


class Mailbox:
    """What a rank sends and receives. A batch is written once and read once, however often it is
    sent or cut; a small one inside a loop goes along with the message about it."""

    def __init__(self, line: Line) -> None:
        """Nothing has come."""
        self._line = line
        self._came = Edges()
        self._held: dict[Place, set[int]] = defaultdict(set)
        self._written: dict[Output, Any] = {}
        self._open: dict[str, Moment] = {}

    def wait(self, wanted: Mapping[Place, Rows]) -> None:
        """Wait until samples of some edges are here."""
        lacking = {
            place: rows for place, rows in wanted.items() if not self._came.has(*place, rows)
        }
        if not lacking:
            return
        told: dict[Place, dict[int, Any]] = self._line.ask("get", lacking)
        new = [
            (place, number, rows, batch)
            for place, batches in told.items()
            for number, (rows, batch) in batches.items()
            if number not in self._held[place]
        ]
        far = [batch for *_which, batch in new if isinstance(batch, ray.ObjectRef)]
        fetched = iter(ray.get(far) if far else [])
        for place, number, rows, batch in new:
            near = next(fetched) if isinstance(batch, ray.ObjectRef) else batch
            self._came.put(*place, rows, wire.unpack(near))
            self._held[place].add(number)

    def take(self, place: Place, rows: Rows) -> Batch:
        """Samples of an edge, which have been waited for."""
        return self._came.take(*place, rows)

    def open(self, places: list[Place]) -> None:
        """Wait until some edges have room for a moment."""
        lacking = [(edge, moment) for edge, moment in places if self._open.get(edge) != moment]
        if lacking:
            self._line.ask("room", lacking)
            self._open |= dict(lacking)

    def put(self, place: Place, rows: Rows, output: Output, value: Batch) -> bool:
        """Hand an output to an edge that has room; whether it had not been sent yet.

        Raises:
            ValueError: for samples that are not among `rows`, the rank's share.
        """
        require_share(rows, index_of(value))
        new = output not in self._written
        if new:
            made = wire.pack(value)
            inside = len(place[1]) > 1 and packed.nbytes(value) <= SMALL
            self._written[output] = made if inside else ray.put(made)
        self._line.tell("put", place, rows, (rows, self._written[output]))
        return new

    def renew(self) -> None:
        """The outputs are new ones now."""
        self._written = {}

    def free(self, place: Place) -> None:
        """Nothing more is needed of a moment of an edge."""
        self._came.drop(*place)
        self._held.pop(place, None)
        self._line.tell("free", place)
