"""Order each row so that few segments cross: barycenter sweeps, then swaps of neighbours."""

from __future__ import annotations

from rlinf_graph.compiler.explain.drawing.net import Net, Segment

SWEEPS = 12


def order_rows(net: Net) -> None:
    """Sort `net.rows` in place; the order at the beginning decides between equals."""
    best, fewest = [list(row) for row in net.rows], count_crossings(net)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        numbers = range(1, len(net.rows)) if down else range(len(net.rows) - 2, -1, -1)
        for number in numbers:
            _by_barycenter(net, number, down)
        _swap_neighbours(net)
        if (found := count_crossings(net)) < fewest:
            best, fewest = [list(row) for row in net.rows], found
    net.rows[:] = best


def count_crossings(net: Net) -> int:
    """Pairs of segments that cross."""
    return sum(_between(net, number) for number in range(1, len(net.rows)))


def _by_barycenter(net: Net, number: int, down: bool) -> None:
    row = net.rows[number]
    ends = _ends(net, number if down else number + 1)
    center: dict[int, float] = {}
    for place, vertex in enumerate(row):
        seen = [
            (above if down else below)
            for segment, above, below in ends
            if vertex == (segment.down if down else segment.up)
        ]
        center[vertex] = sum(seen) / len(seen) if seen else float(place)
    row.sort(key=lambda vertex: center[vertex])


def _swap_neighbours(net: Net) -> None:
    for number, row in enumerate(net.rows):
        improved = True
        while improved:
            improved = False
            for i in range(len(row) - 1):
                before = _around(net, number)
                row[i], row[i + 1] = row[i + 1], row[i]
                if _around(net, number) < before:
                    improved = True
                else:
                    row[i], row[i + 1] = row[i + 1], row[i]


def _around(net: Net, number: int) -> int:
    above = _between(net, number) if number else 0
    return above + (_between(net, number + 1) if number + 1 < len(net.rows) else 0)


def _between(net: Net, number: int) -> int:
    """Crossings between a row and the one above it."""
    ends = [(above, below) for _segment, above, below in _ends(net, number)]
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for i, a in enumerate(ends) for b in ends[i + 1 :])


def _ends(net: Net, number: int) -> list[tuple[Segment, float, float]]:
    """The segments that arrive at a row, with the places of their ends in both rows."""
    above = {vertex: place for place, vertex in enumerate(net.rows[number - 1])}
    below = {vertex: place for place, vertex in enumerate(net.rows[number])}
    return [
        (s, above[s.up] + _share(net, s.up, s.start), below[s.down] + _share(net, s.down, s.end))
        for s in net.into_row(number)
    ]


def _share(net: Net, vertex: int, offset: float) -> float:
    """An offset in a vertex as a part of a place, between -0.4 and 0.4."""
    made = net.vertices[vertex]
    return 0.8 * offset / (made.left + made.right)
