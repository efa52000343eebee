"""The nodes of a graph one after another, with numbers, and who takes what from whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlinf_graph.compiler.explain.drawing.feedback import Arc
from rlinf_graph.compiler.explain.drawing.places import REGISTER, ROOT
from rlinf_graph.compiler.explain.drawing.sketch import Sketch
from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.graph import Node

Part = Literal["node", "opens", "carried", "leaves", "closes"]


@dataclass(frozen=True)
class Row:
    """A node; or a loop, that opens, carries a value, lets batches out, and closes.

    Attributes:
        part: which of these.
        node: the node, or the loop's region node.
        number: of the node, None in the later parts of a loop.
        depth: loops around it.
        takes: numbers.
        makes: such as `Rollouts → 3, 4`.
    """

    part: Part
    node: Node
    number: int | None
    depth: int
    takes: tuple[int, ...] = ()
    makes: tuple[str, ...] = ()


class Flow:
    """A sketch as rows."""

    def __init__(self, drawn: Sketch) -> None:
        """Producers come first, syncs last."""
        self.drawn, self.graph = drawn, drawn.graph
        names = list(self._names(ROOT))
        self.numbers = {name: number for number, name in enumerate(names, start=1)}

    def rows(self, scope: str = ROOT) -> Iterator[Row]:
        """The rows of a scope, those of the loops in it included."""
        depth = len(self.graph.regions_of(scope)) + 1 if scope else 0
        for item in self.drawn.scopes[scope].items:
            if item not in self.numbers:
                continue
            node, number = self.graph.node(item), self.numbers[item]
            if node.loop is None:
                yield Row("node", node, number, depth, self._takes(node), self._makes(node))
                continue
            yield Row("opens", node, number, depth)
            inside = self._sent(item, within=True)
            yield Row("carried", node, None, depth + 1, self._takes(node), inside)
            yield from self.rows(item)
            if outside := self._makes(node):
                yield Row("leaves", node, None, depth + 1, (), outside)
            yield Row("closes", node, None, depth)

    def number(self, item: str) -> int:
        """The number of a node, and for what a loop carries that of the loop."""
        return self.numbers[item.removeprefix(REGISTER)]

    def feedback(self) -> Iterator[tuple[str, str]]:
        """From where to where, such as `9 ⇢ 2, 8`, and what comes when."""
        for arc in self.drawn.arcs:
            yield self._ends(arc), f"{arc.subject}: {', '.join(arc.remarks)}"

    def _ends(self, arc: Arc) -> str:
        targets = sorted(map(self.number, arc.targets))
        return f"{self.number(arc.source)} ⇢ {', '.join(map(str, targets)) or '-'}"

    def _names(self, scope: str) -> Iterator[str]:
        for item in self.drawn.scopes[scope].items:
            if item in self.graph.by_name:
                yield item
                if self.graph.node(item).loop is not None:
                    yield from self._names(item)

    def _takes(self, node: Node) -> tuple[int, ...]:
        return tuple(sorted({self.numbers[i.source.node] for i in node.inputs if not i.lag}))

    def _makes(self, node: Node) -> tuple[str, ...]:
        return self._sent(node.name, within=False)

    def _sent(self, name: str, within: bool) -> tuple[str, ...]:
        """By batch; `within` a loop, what it carries goes to the nodes of its body."""
        found: dict[tuple[Source, str, str], set[int]] = {}
        for edge in self.graph.out_of(name):
            if (name in self.graph.regions_of(edge.target)) is within:
                key = (edge.source, edge.type, "⇢" if edge.lag else "→")
                found.setdefault(key, set()).add(self.numbers[edge.target])
        for region in self.graph.nodes if not within else ():
            if region.loop is None:
                continue
            for place, source in enumerate((region.loop.carried, *region.loop.emitted)):
                if source.node == name and region.name != name:
                    kind = region.outputs[place] if place < len(region.outputs) else ""
                    key = (source, kind, "→" if place else "⇢")
                    found.setdefault(key, set()).add(self.numbers[region.name])
        ordered = sorted(found.items(), key=lambda item: (item[0][0].output, item[0][0].field))
        return tuple(
            f"{kind} {arrow} {', '.join(map(str, sorted(to)))}"
            for (_source, kind, arrow), to in ordered
        )
