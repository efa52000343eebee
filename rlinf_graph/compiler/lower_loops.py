"""The loops around a node of a region's body: what it takes and sends in which step of which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlinf_graph.ir.graph import Graph, Loop, Node
from rlinf_graph.ir.position import Select
from rlinf_graph.ir.program import (
    Branch,
    Free,
    Gather,
    Instruction,
    Keep,
    Recv,
    Repeat,
    Send,
)
from rlinf_graph.ir.wiring import Pick, Way, Wire, wires_of

Body = tuple[Instruction, ...]


@dataclass(frozen=True)
class Loops:
    """The regions around one node, or none, and its edges.

    Attributes:
        graph: verified.
        node: of the body of the innermost region.
        ways: what comes to it.
        wires: what it sends.
    """

    graph: Graph
    node: Node
    ways: Sequence[Way]
    wires: Sequence[Wire]

    @property
    def regions(self) -> tuple[str, ...]:
        """Outermost first."""
        return self.graph.regions_of(self.node.name)

    @property
    def depth(self) -> int:
        """How many."""
        return len(self.regions)

    def receive(self, select: Select) -> Body:
        """What the node takes in each step."""
        return tuple(i for way in self.ways for i in _receive(way, select))

    def send(self) -> Body:
        """What it sends in each step to others of the innermost body, and puts aside of it."""
        sent = (self._sent(wire) for wire in self.wires if not wire.leaving)
        return (*sent, *(self._keep(self.depth) if self.depth else ()))

    def around(self, inner: Body) -> Body:
        """The loops, with `inner` in the innermost; what is taken is given back at the end.

        After each loop goes out what leaves no further one. What a loop takes from outside is given
        back when it is over, what is made inside at the end of each step.
        """
        body = inner
        for depth in range(self.depth, 0, -1):
            kept = self._keep(depth) if depth < self.depth else ()
            step = (*body, *kept, *self._free(depth))
            body = (Repeat("step", self._loop(depth).length, step), *self._leave(depth))
        return (*body, *self._free(0))

    def _loop(self, depth: int) -> Loop:
        loop = self.graph.node(self.regions[depth - 1]).loop
        if loop is None:
            raise ValueError(f"`{self.regions[depth - 1]}` is no verified region")
        return loop

    def _sent(self, wire: Wire) -> Instruction:
        """Samples that are done are not carried on; in the last step nothing is."""
        source = wire.source
        until = self._loop(wire.depth).until if wire.lag and wire.depth else ""
        return _when(wire, Send(wire.name, source.output, source.field, until=until))

    def _keep(self, depth: int) -> Body:
        """Put aside, in every step of a loop, what leaves it."""
        made: list[Instruction] = []
        for slot, wire in self._slots(depth).items():
            level = self.depth - depth
            inner = _slot(wire, level - 1) if level else ""
            keep = Keep(slot, wire.source.output, inner)
            if wire.leaving[level] == "joined":
                made.append(keep)
                continue
            until = self._loop(depth).until
            done = (Keep(slot, wire.source.output, inner, until),) if until else ()
            made.append(Branch(depth, "last", (keep,), done))
        return tuple(made)

    def _leave(self, depth: int) -> Body:
        """Behind a loop: join what was put aside, and send what has left all loops that it must."""
        slots = self._slots(depth)
        level = self.depth - depth
        out = [w for w in self.wires if len(w.leaving) == level + 1]
        return (
            *(Gather(slot) for slot in slots),
            *(self._out(wire, level) for wire in out),
        )

    def _out(self, wire: Wire, level: int) -> Instruction:
        source, slot = wire.source, _slot(wire, level)
        until = self._loop(wire.depth).until if wire.lag and wire.depth else ""
        sent = Send(wire.name, source.output, source.field, gathered=slot, until=until)
        return _when(wire, sent)

    def _slots(self, depth: int) -> dict[str, Wire]:
        """What is put aside in the loop at a depth, each thing once."""
        level = self.depth - depth
        return {_slot(w, level): w for w in self.wires if len(w.leaving) > level}

    def _free(self, depth: int) -> Body:
        made: list[Instruction] = []
        for way in self.ways:
            for wire in wires_of(way):
                if wire.depth != depth:
                    continue
                free = Free(wire.name, wire.lag)
                late = Branch(depth, "first", otherwise=(free,)) if wire.lag else free
                made.append(Branch(0, "first", (free,)) if wire.initial else late)
        return tuple(made)


def _when(wire: Wire, send: Send) -> Instruction:
    """What is carried goes out in all steps but the last, what a state begins with only once."""
    if wire.initial:
        return Branch(0, "first", (send,))
    if wire.lag and wire.depth:
        return Branch(wire.depth, "last", otherwise=(send,))
    return send


def _receive(way: Way, select: Select) -> Body:
    if isinstance(way, Pick):
        return (
            Branch(way.depth, "first", _receive(way.first, select), _receive(way.later, select)),
        )
    return (Recv(way.name, way.param, select, way.lag),)


def _slot(wire: Wire, level: int) -> str:
    """One slot for all wires that take the same output out of the same loops the same way."""
    ways = ", ".join(wire.leaving[: level + 1])
    return f"{wire.source.node}.{wire.source.output} {ways}"
