"""The nodes of a graph as a table, with a frame round the rows of each loop."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlinf_graph.compiler.explain.drawing.flow import Flow, Row
from rlinf_graph.compiler.explain.drawing.metrics import shortened
from rlinf_graph.compiler.explain.drawing.words import (
    every,
    is_barrier,
    kind_of,
    loop_name,
    loop_steps,
    uses,
)
from rlinf_graph.ir.graph import Graph

HEAD = ("#", "  node", "role", "model, env", "takes", "makes")
NUMBER, NAME, MAKES = 0, 1, 5
BARRIER, CARRIED, LEAVES = "━", "↻", "↓"
LONGEST, LEAST_MAKES, GAP = 32, 24, 2
UNBROKEN = "\N{NO-BREAK SPACE}"


def table_lines(flow: Flow, width: int) -> list[str]:
    """The table in at most `width` columns, as far as the names allow."""
    rows = list(flow.rows())
    return list(_Table(rows, [_cells(flow.graph, row) for row in rows], width).lines())


def _cells(graph: Graph, row: Row) -> tuple[str, ...]:
    """All columns but the last."""
    number = "" if row.number is None else str(row.number)
    takes = ", ".join(map(str, row.takes))
    node = row.node
    if row.part == "node":
        mark = BARRIER if is_barrier(node) else " "
        role = f"{kind_of(node)} {every(graph, node)}".rstrip()
        name, used = shortened(node.name, LONGEST), shortened(uses(node), LONGEST)
        return number, f"{mark} {name}", role, used, takes
    shown = {"carried": f"{CARRIED} carried", "leaves": f"{LEAVES} leaves"}.get(row.part, "")
    return number, shown, "", "", takes


@dataclass
class _Table:
    """Rows with the cells of their columns; the last column is wrapped."""

    rows: Sequence[Row]
    cells: Sequence[tuple[str, ...]]
    width: int

    def lines(self) -> Iterator[str]:
        sizes = self._sizes()
        start = sum(size + GAP for size in sizes)
        deepest = max((row.depth for row in self.rows), default=0)
        room = max(LEAST_MAKES, self.width - start - 2 * deepest)
        made = [_wrap(row.makes, room) for row in self.rows]
        used = [self._need(row, lines, start) for row, lines in zip(self.rows, made, strict=True)]
        whole = max(used, default=0)
        yield _join((HEAD[0].rjust(sizes[0]), *HEAD[1:MAKES]), sizes) + HEAD[MAKES]
        for row, cells, lines in zip(self.rows, self.cells, made, strict=True):
            for place, line in enumerate(lines):
                shown = cells if place == 0 else ("",) * MAKES
                yield self._line(row, shown, line, sizes, whole)

    def _sizes(self) -> list[int]:
        """Of all columns but the last; the first begins with a blank."""
        sizes = [2, *(len(head) for head in HEAD[1:MAKES])]
        for row, cells in zip(self.rows, self.cells, strict=True):
            for column, text in enumerate(cells):
                before = {NUMBER: 1, NAME: 2 * row.depth}.get(column, 0)
                sizes[column] = max(sizes[column], len(text) + before)
        return sizes

    def _need(self, row: Row, lines: Sequence[str], start: int) -> int:
        """Columns up to the right of the row's frames."""
        if row.part == "opens":
            return self._sizes()[0] + GAP + 4 * row.depth + len(_title(row)) + 6
        return start + max(map(len, lines)) + 2 * row.depth

    def _line(
        self, row: Row, cells: tuple[str, ...], makes: str, sizes: list[int], whole: int
    ) -> str:
        number, left = cells[0].rjust(sizes[0]) + " " * GAP, "│ " * row.depth
        room = whole - sizes[0] - GAP - 4 * row.depth
        if row.part == "opens":
            inside = f"╭─ {_title(row)} ".ljust(room - 1, "─") + "╮"
        elif row.part == "closes":
            inside = "╰".ljust(room - 1, "─") + "╯"
        else:
            inside = _join(cells[1:], [sizes[1] - 2 * row.depth, *sizes[2:]]) + makes
        return f"{number}{left}{inside.ljust(room)}{left[::-1]}".rstrip()


def _title(row: Row) -> str:
    return f"{loop_name(row.node)} · {loop_steps(row.node)}"


def _join(cells: Sequence[str], sizes: Sequence[int]) -> str:
    return "".join(text.ljust(size + GAP) for text, size in zip(cells, sizes, strict=True))


def _wrap(makes: Sequence[str], width: int) -> list[str]:
    """At least one line; a batch and the first of those that take it stay together."""
    kept = [item.replace(" → ", f"{UNBROKEN}→{UNBROKEN}") for item in makes]
    kept = [item.replace(" ⇢ ", f"{UNBROKEN}⇢{UNBROKEN}") for item in kept]
    lines = textwrap.wrap(" · ".join(kept), width, break_long_words=False) or [""]
    return [line.removesuffix(" ·").replace(UNBROKEN, " ") for line in lines]
