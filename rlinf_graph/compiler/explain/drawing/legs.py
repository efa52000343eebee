"""Feedback between an item and a lane, or the frame where the other end is outside of the scope.

Where other boxes are to the right of the item a leg runs through a channel: above the row where it
comes in, below the row where it goes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rlinf_graph.compiler.explain.drawing.feedback import Arc
from rlinf_graph.compiler.explain.drawing.net import Net, Vertex
from rlinf_graph.compiler.explain.drawing.places import Places

Point = tuple[float, float]
End = tuple[int, str]
"""An arc's number and the item at one of its targets; empty at its source."""

NEAR, PITCH, CHANNEL, FROM_FOOT = 10.0, 7.0, 8.0, 16.0


@dataclass
class Leg:
    """A piece of an arc in a scope.

    Attributes:
        end: of the arc that it leads to.
        item: the scope's item there.
        home: whether the arc's lane is in this scope; else the leg ends at the frame.
        side: height at which it touches the item.
        level: height at which it runs outwards; that of `side` where it is straight.
        descent: where it runs between the two.
    """

    end: End
    item: str
    home: bool
    side: float = 0.0
    level: float = 0.0
    descent: float = 0.0

    @property
    def incoming(self) -> bool:
        """Whether values come in on it."""
        return bool(self.end[1])

    def points(self, edge: float, outer: float) -> list[Point]:
        """From the item, whose right edge is at `edge`, to a lane or frame at `outer`."""
        if self.level == self.side:
            return [(edge, self.side), (outer, self.side)]
        turn = [(self.descent, self.side), (self.descent, self.level)]
        return [(edge, self.side), *turn, (outer, self.level)]


def legs_by_scope(places: Places, arcs: Iterable[Arc]) -> dict[str, list[Leg]]:
    """Every leg, in the scopes that the arcs run through."""
    legs: dict[str, list[Leg]] = {scope: [] for scope in places.scopes}
    for number, arc in enumerate(arcs):
        home = places.meeting((arc.source, *arc.targets))
        for target, item in (("", arc.source), *((t, t) for t in arc.targets)):
            way = (*places.around(item), item)
            for depth in range(way.index(home), len(way) - 1):
                leg = Leg((number, target), way[depth + 1], home=way[depth] == home)
                legs[way[depth]].append(leg)
    return legs


def margin(count: int) -> float:
    """Room for legs to the right of a box."""
    return NEAR + PITCH * count if count else 0.0


def touch(legs: list[Leg], net: Net, sides: Mapping[str, Mapping[End, float]]) -> None:
    """Set `side`, from the item's top: at loops where the inside has it, at boxes evenly.

    Feedback of a loop as a whole takes the lowest free places at its frame.
    """
    for item in {leg.item: None for leg in legs}:
        own = sorted((leg for leg in legs if leg.item == item), key=lambda leg: not leg.incoming)
        height = net.blocks[item].height
        taken = list(sides.get(item, {}).values())
        for number, leg in enumerate(own):
            if item not in sides:
                leg.side = height * (number + 1) / (len(own) + 1)
            elif leg.end in sides[item]:
                leg.side = sides[item][leg.end]
            else:
                leg.side = height - FROM_FOOT
                while any(abs(leg.side - other) < CHANNEL for other in taken):
                    leg.side -= 1.0
                taken.append(leg.side)


@dataclass
class Channels:
    """The legs that have to turn, by row, from top to bottom."""

    above: dict[int, list[Leg]] = field(default_factory=dict[int, list[Leg]])
    below: dict[int, list[Leg]] = field(default_factory=dict[int, list[Leg]])

    @classmethod
    def of(cls, legs: list[Leg], net: Net) -> Channels:
        """Those with a box to the right; set their `descent`. Ordered so that few cross."""
        items = item_vertices(net)
        made = cls()
        for number, row in enumerate(net.rows):
            boxes = [net.vertices[v].item for v in row if net.vertices[v].item]
            turned = [leg for leg in legs if leg.item in boxes[:-1]]
            into = [leg for leg in turned if leg.incoming]
            out = [leg for leg in turned if not leg.incoming]
            made.above[number] = sorted(into, key=lambda leg: (boxes.index(leg.item), leg.side))
            made.below[number] = sorted(out, key=lambda leg: (-boxes.index(leg.item), leg.side))
            for group in (made.above[number], made.below[number][::-1]):
                seen: dict[str, int] = {}
                for leg in group:
                    place = seen.setdefault(leg.item, 0)
                    seen[leg.item] += 1
                    vertex = items[leg.item]
                    box = vertex.x + net.blocks[leg.item].width / 2
                    leg.descent = box + NEAR + PITCH * place
        return made

    def set_levels(self, bands: list[Point]) -> None:
        """Heights in the scope, once the rows have theirs."""
        for number, (top, bottom) in enumerate(bands):
            for place, leg in enumerate(self.above[number]):
                leg.level = top + CHANNEL * (place + 0.5)
            for place, leg in enumerate(self.below[number][::-1]):
                leg.level = bottom - CHANNEL * (place + 0.5)


def item_vertices(net: Net) -> dict[str, Vertex]:
    """The items' vertices."""
    return {vertex.item: vertex for vertex in net.vertices if vertex.item}
