"""Which scope each item of a drawing is in, and the way from one to another."""

from __future__ import annotations

from functools import cached_property

from rlinf_graph.ir.graph import Graph

ROOT = ""
REGISTER = "carried: "


def register(region: str) -> str:
    """The item that stands for the value which a loop carries from step to step."""
    return REGISTER + region


class Places:
    """The scopes of a graph; that of a loop has the loop's name."""

    def __init__(self, graph: Graph) -> None:
        """Nodes say which region they are in."""
        self.graph = graph
        self.regions = tuple(node.name for node in graph.nodes if node.loop is not None)

    @cached_property
    def scopes(self) -> tuple[str, ...]:
        """Outermost first."""
        inner = sorted(self.regions, key=lambda name: len(self.graph.regions_of(name)))
        return (ROOT, *inner)

    def items(self, scope: str) -> tuple[str, ...]:
        """A loop's register first, then nodes as declared."""
        nodes = tuple(node.name for node in self.graph.body(scope))
        return nodes if scope == ROOT else (register(scope), *nodes)

    def around(self, item: str) -> tuple[str, ...]:
        """The scopes around an item, from the whole graph to its own."""
        if item not in self.graph.by_name and item.startswith(REGISTER):
            region = item.removeprefix(REGISTER)
            return (ROOT, *self.graph.regions_of(region), region)
        return (ROOT, *self.graph.regions_of(item))

    def hops(self, start: str, end: str) -> list[tuple[str, str, str]]:
        """Scope, item and item of each part of the way; an empty item is the scope's frame."""
        up, down = (*self.around(start), start), (*self.around(end), end)
        shared = 0
        while up[shared] == down[shared] and shared < min(len(up), len(down)) - 1:
            shared += 1
        top = shared - 1
        rising = [(up[i], up[i + 1], "") for i in range(len(up) - 2, top, -1)]
        falling = [(down[i], "", down[i + 1]) for i in range(top + 1, len(down) - 1)]
        return [*rising, (up[top], up[top + 1], down[top + 1]), *falling]

    def meeting(self, items: tuple[str, ...]) -> str:
        """The innermost scope that is around all of the items."""
        scopes = zip(*map(self.around, items), strict=False)
        return [level[0] for level in scopes if len(set(level)) == 1][-1]
