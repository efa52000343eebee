"""Where in its row each vertex stands: links are as straight as the room between boxes allows.

Least squares first, exact in each row by pooling neighbours that would overlap; then, vertex by
vertex, the place with the least sum of horizontal distances, which makes straight lines of most.
"""

from __future__ import annotations

from rlinf_graph.compiler.explain.drawing.net import Net, Segment, Vertex

SQUARES, MEDIANS = 300, 30
BETWEEN_BOXES, BESIDE_LABEL, BESIDE_BEND = 28.0, 10.0, 14.0
STILL = 0.05
"""Pixels in a sweep, below which nothing visible changes any more."""

STRAY = 1e-3
"""The weight with which a vertex without links keeps its place."""


def spread(net: Net) -> None:
    """Set the `x` of every vertex."""
    for row in net.rows:
        x = 0.0
        for before, number in zip([None, *row], row, strict=False):
            if before is not None:
                x += distance(net.vertices[before], net.vertices[number])
            net.vertices[number].x = x
    for sweep in range(SQUARES):
        rows = net.rows if sweep % 2 == 0 else net.rows[::-1]
        if max(_least_squares(net, row) for row in rows) < STILL:
            break
    groups = _groups(net)
    for sweep in range(MEDIANS):
        for group in groups if sweep % 2 == 0 else groups[::-1]:
            _least_distance(net, group)


def distance(a: Vertex, b: Vertex) -> float:
    """Between the middles of neighbours, at least."""
    if a.item and b.item:
        gap = BETWEEN_BOXES
    elif a.label and b.label:
        gap = BESIDE_LABEL
    else:
        gap = BESIDE_BEND
    return a.right + gap + b.left


def _pulls(net: Net, number: int) -> list[tuple[float, float]]:
    """Where links would have a vertex, and how much each weighs."""
    up = [(net.vertices[s.up].x + s.start - s.end, s.weight) for s in net.above[number]]
    down = [(net.vertices[s.down].x + s.end - s.start, s.weight) for s in net.below[number]]
    return [*up, *down]


def _least_squares(net: Net, row: list[int]) -> float:
    """Isotonic regression: blocks of vertices that touch move to their common mean.

    Returns:
        How far one moved, at most.
    """
    blocks: list[tuple[float, float, int]] = []
    offset, offsets = 0.0, list[float]()
    for before, number in zip([None, *row], row, strict=False):
        if before is not None:
            offset += distance(net.vertices[before], net.vertices[number])
        offsets.append(offset)
        pulls = _pulls(net, number) or [(net.vertices[number].x, STRAY)]
        weight = sum(w for _x, w in pulls)
        mean = sum(x * w for x, w in pulls) / weight - offset
        blocks.append((mean, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    places = [mean for mean, _weight, count in blocks for _ in range(count)]
    moved = 0.0
    for number, place, offset in zip(row, places, offsets, strict=True):
        moved = max(moved, abs(net.vertices[number].x - place - offset))
        net.vertices[number].x = place + offset
    return moved


def _groups(net: Net) -> list[dict[int, float]]:
    """Vertices that move together, with their offsets: the bends of a link one after another, a
    box and the label of its only batch, any other alone."""
    follower: dict[int, Segment] = {}
    for number, vertex in enumerate(net.vertices):
        bends = [s for s in net.below[number] if net.vertices[s.down].is_bend]
        if len(bends) == 1 and not vertex.label and not vertex.port:
            follower[number] = bends[0]
    led = {segment.down for segment in follower.values()}
    groups: list[dict[int, float]] = []
    for head in range(len(net.vertices)):
        if head in led:
            continue
        group, last = {head: 0.0}, head
        while last in follower:
            segment = follower[last]
            group[segment.down] = group[last] + segment.start - segment.end
            last = segment.down
        groups.append(group)
    return sorted(groups, key=lambda group: (-len(group), net.vertices[min(group)].row))


def _least_distance(net: Net, group: dict[int, float]) -> None:
    """Move a group to the weighted median of where its links would have it, as far as it can."""
    pulls: list[tuple[float, float]] = []
    for number, offset in group.items():
        for s in net.above[number]:
            if s.up not in group:
                pulls.append((net.vertices[s.up].x + s.start - s.end - offset, s.weight))
        for s in net.below[number]:
            if s.down not in group:
                pulls.append((net.vertices[s.down].x + s.end - s.start - offset, s.weight))
    low, high = _room(net, group)
    if not pulls or low > high:
        return
    now = net.vertices[next(iter(group))].x
    choices = sorted({min(max(x, low), high) for x, _w in pulls}, key=lambda x: (abs(x - now), x))
    place = min(choices, key=lambda x: round(sum(abs(x - p) * w for p, w in pulls), 6))
    for number, offset in group.items():
        net.vertices[number].x = place + offset


def _room(net: Net, group: dict[int, float]) -> tuple[float, float]:
    low, high = float("-inf"), float("inf")
    for number, offset in group.items():
        vertex = net.vertices[number]
        row = net.rows[vertex.row]
        place = row.index(number)
        if place:
            before = net.vertices[row[place - 1]]
            low = max(low, before.x + distance(before, vertex) - offset)
        if place + 1 < len(row):
            after = net.vertices[row[place + 1]]
            high = min(high, after.x - distance(vertex, after) - offset)
    return low, high
