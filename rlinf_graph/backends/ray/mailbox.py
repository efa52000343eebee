"""One rank's way to the board and, through the object store, to the other ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from rlinf_graph.backends import edges
from rlinf_graph.backends.edges import Edges, Extent, Rows
from rlinf_graph.backends.ray import wire
from rlinf_graph.backends.ray.line import Line
from rlinf_graph.backends.ray.nearby import Nearby
from rlinf_graph.backends.ray.state import SMALL, Held, Part, Place, Wanted
from rlinf_graph.ir import packed
from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.position import Moment

Output = tuple[int, tuple[str, ...], str, str]
"""The number of a node's output, the field of it that an edge carries, what was gathered in its
stead, and the field that keeps samples back."""


class Mailbox:
    """What a rank sends and receives. Inside a process batches are handed over as they are; to
    others a batch is written once and read once, however often it is sent or cut."""

    def __init__(self, who: tuple[str, int], line: Line, nearby: Nearby) -> None:
        """Nothing has come."""
        self._who, self._line, self._nearby = who, line, nearby
        self._came = Edges()
        self._held: dict[Place, set[int]] = defaultdict(set)
        self._written: dict[Output, tuple[edges.Part, Any]] = {}
        self._open: dict[str, Moment] = {}
        self._made = 0

    def wait(self, wanted: Mapping[Place, Rows]) -> None:
        """Wait until samples of some edges are here."""
        near: dict[Place, Wanted] = {}
        far: dict[Place, Wanted] = {}
        for place, rows in wanted.items():
            if not self._came.has(*place, rows):
                lacking = Extent.of(rows), frozenset(self._held[place])
                (near if self._nearby.knows(place[0]) else far)[place] = lacking
        if far:
            self._take_far(self._line.ask("get", far))
        if near:
            found = self._nearby.ask(self._who, "get", near, first=self._line.flush)
            for place, _extent, part in self._new(found):
                self._came.lay(*place, part)

    def _take_far(self, told: dict[Place, dict[int, Part]]) -> None:
        new = list(self._new(told))
        opened = self._open_all([held for _place, _extent, held in new])
        for place, extent, held in new:
            self._came.put(*place, extent.rows, opened[held.name])

    def _open_all(self, many: list[Held]) -> dict[Any, Batch]:
        """Batches by name, read once in the process, however many edges carry them to it."""
        opened = {h.name: b for h in many if (b := self._nearby.opened.get(h.name)) is not None}
        closed = {held.name: held.data for held in many if held.name not in opened}
        stored = [name for name, data in closed.items() if isinstance(data, ray.ObjectRef)]
        found = ray.get([closed[name] for name in stored]) if stored else []
        made = {name: wire.unpack(packed) for name, packed in zip(stored, found, strict=True)}
        made |= {name: wire.loads(closed[name]) for name in closed if name not in made}
        self._nearby.opened.update(made)
        return opened | made

    def _new(self, told: dict[Place, dict[int, Part]]) -> Iterator[tuple[Place, Extent, Any]]:
        """Parts that have not come before."""
        for place, parts in told.items():
            for number, (extent, held) in parts.items():
                if number not in self._held[place]:
                    self._held[place].add(number)
                    yield place, extent, held

    def take(self, place: Place, rows: Rows) -> Batch:
        """Samples of an edge, which have been waited for."""
        return self._came.take(*place, rows)

    def open(self, places: list[Place]) -> None:
        """Wait until some edges have room for a moment."""
        lacking = [(edge, moment) for edge, moment in places if self._open.get(edge) != moment]
        near = [place for place in lacking if self._nearby.knows(place[0])]
        far = [place for place in lacking if not self._nearby.knows(place[0])]
        if far:
            self._line.ask("room", far)
        if near:
            self._nearby.ask(self._who, "room", near, first=self._line.flush)
        self._open |= dict(lacking)

    def put(self, place: Place, rows: Rows, output: Output, value: Batch) -> bool:
        """Hand an output to an edge that has room; whether it had not been sent yet.

        Raises:
            ValueError: for samples that are not among `rows`, the rank's share.
        """
        new = output not in self._written
        part, held = self._written.get(output, (None, None))
        if part is None or part.rows is not rows:
            part = edges.Part.of(rows, value)
        if self._nearby.knows(place[0]):
            self._nearby.tell("put", place, (part.extent, part))
        else:
            if held is None:
                small = packed.nbytes(value) <= SMALL
                data = wire.dumps(value) if small else ray.put(wire.pack(value))
                self._made += 1
                held = Held((*self._who, self._made), data)
            refers = isinstance(held.data, ray.ObjectRef)
            self._line.tell("put", place, (part.extent, held), refers=refers)
        self._written[output] = part, held
        return new

    def renew(self) -> None:
        """The outputs are new ones now."""
        self._written = {}

    def free(self, place: Place) -> None:
        """Nothing more is needed of a moment of an edge."""
        self._came.drop(*place)
        self._held.pop(place, None)
        if self._nearby.knows(place[0]):
            self._nearby.tell("free", place)
        else:
            self._line.tell("free", place)
