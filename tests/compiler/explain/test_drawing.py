"""Graphs as text and as pictures: what a reader sees, and that every picture is sound."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from rlinf_graph.compiler.explain.drawing import render_graph_svg, render_graph_text
from rlinf_graph.compiler.explain.drawing.layout import Box, Layout, lay_out
from rlinf_graph.compiler.explain.drawing.places import register
from rlinf_graph.compiler.explain.drawing.sketch import sketch
from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.graph import Graph, Loop
from rlinf_graph.ir.node_type import Port, Role
from tests.compiler.explain.drawn_graphs import embodied, graphs, grpo, nested, node, ppo

NEAR = 0.2
"""Pixels; coordinates are written with one decimal."""

SVG = "{http://www.w3.org/2000/svg}"
MADE: dict[str, Callable[[], Graph]] = {
    "grpo": grpo.build,
    "ppo": ppo.build,
    "embodied": embodied.build,
    "nested": nested,
}
Point = tuple[float, float]
each_graph = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def meets(self, other: Rect) -> bool:
        across = self.x < other.right - NEAR and other.x < self.right - NEAR
        return across and self.y < other.bottom - NEAR and other.y < self.bottom - NEAR

    def holds(self, other: Rect) -> bool:
        across = self.x < other.x and other.right < self.right
        return across and self.y < other.y and other.bottom < self.bottom

    def inside(self, point: Point) -> bool:
        x, y = point
        return self.x + NEAR < x < self.right - NEAR and self.y + NEAR < y < self.bottom - NEAR


class Picture:
    """What can be read from the text of an SVG."""

    def __init__(self, text: str) -> None:
        self.root = ElementTree.fromstring(text)
        self.nodes = dict(self._rects("node"))
        self.loops = dict(self._rects("loop"))
        self.registers = dict(self._rects("carried"))
        self.labels = [rect for _name, rect in self._rects("label")]
        self.edges = list(self._paths("edge"))
        self.feedback = list(self._paths("feedback"))

    @property
    def boxes(self) -> dict[str, Rect]:
        return {**self.nodes, **self.loops, **self.registers}

    def with_class(self, name: str) -> list[ElementTree.Element]:
        return [e for e in self.root.iter() if name in (e.get("class") or "").split()]

    def _rects(self, kind: str) -> Iterator[tuple[str, Rect]]:
        for group in self.with_class(kind):
            drawn = group.find(f"{SVG}rect")
            assert drawn is not None
            values = (float(drawn.get(name, "")) for name in ("x", "y", "width", "height"))
            yield group.get("data-name", ""), Rect(*values)

    def _paths(self, kind: str) -> Iterator[tuple[ElementTree.Element, str, str, list[Point]]]:
        for path in self.with_class(kind):
            pairs = re.findall(r"(-?[\d.]+),(-?[\d.]+)", path.get("d", ""))
            points = [(float(x), float(y)) for x, y in pairs]
            yield path, path.get("data-from", ""), path.get("data-to", ""), points


@each_graph
def test_graph_as_text(make: Callable[[], Graph], snapshot: object) -> None:
    assert render_graph_text(make()) == snapshot


@each_graph
def test_pictures_are_sound(make: Callable[[], Graph]) -> None:
    check_picture(make())
    layout = lay_out(sketch(make()))
    remarks = [rect(box) for _arc, box in layout.remarks]
    ways = [pair for line in (*layout.wires, *layout.arcs) for pair in pairwise(line.points)]
    points = [point for start, end in ways for point in between(start, end, bent=False)]
    assert not any(remark.inside(point) for remark in remarks for point in points)


@settings(max_examples=25, deadline=None)
@given(graph=graphs())
def test_any_picture_is_sound(graph: Graph) -> None:
    check_picture(graph)


def check_picture(graph: Graph) -> None:
    text = render_graph_svg(graph)
    picture, layout = Picture(text), lay_out(sketch(graph))
    check_boxes(graph, picture)
    check_edges(graph, picture)
    check_feedback(graph, picture)
    check_texts(layout)
    check_ways(layout)
    assert len(picture.with_class("barrier")) == sum(
        is_drawn_as_barrier(n.name, graph) for n in graph.nodes
    )
    assert render_graph_svg(graph) == text


def check_boxes(graph: Graph, picture: Picture) -> None:
    """Every node once, inside the frames of its loops only, and no two boxes overlap."""
    assert sorted(picture.nodes) == sorted(n.name for n in graph.nodes if n.loop is None)
    assert sorted(picture.loops) == sorted(n.name for n in graph.nodes if n.loop)
    assert len(picture.with_class("node")) == len(picture.nodes)
    around = {n.name: graph.regions_of(n.name) for n in graph.nodes}
    around |= {register(loop): (*around[loop], loop) for loop in picture.loops}
    for name, box in picture.boxes.items():
        for loop in around[name]:
            assert picture.loops[loop].holds(box)
    for loop, title in zip(picture.loops, picture.with_class("subtitle"), strict=True):
        assert (
            picture.loops[loop].y < float(title.get("y", "")) < picture.registers[register(loop)].y
        )
    for (a, first), (b, second) in combinations(picture.boxes.items(), 2):
        if a not in around[b] and b not in around[a]:
            assert not first.meets(second), (a, b)


def check_edges(graph: Graph, picture: Picture) -> None:
    """Every edge goes down from the foot of a box to the head of another, or to its loop's foot."""
    boxes = picture.boxes
    drawn = {(source, target) for _path, source, target, _points in picture.edges}
    for edge in graph.edges:
        if not edge.lag:
            inside = edge.source.node in graph.regions_of(edge.target)
            source = register(edge.source.node) if inside else edge.source.node
            target = register(edge.target) if graph.node(edge.target).loop else edge.target
            assert (source, target) in drawn
    for _path, source, target, points in picture.edges:
        (x, y), (to_x, to_y) = points[0], points[-1]
        start, end = boxes[source], boxes[target]
        foot = end.bottom if target in picture.loops else end.y
        assert start.x < x < start.right
        assert y == pytest.approx(start.bottom, abs=NEAR)
        assert end.x < to_x < end.right
        assert to_y == pytest.approx(foot, abs=NEAR)
        assert all(a[1] <= b[1] + NEAR for a, b in pairwise(points))


def check_feedback(graph: Graph, picture: Picture) -> None:
    """Dashed, from the right of a box to that of another: of syncs, states and loops."""
    drawn = {(source, target) for _path, source, target, _points in picture.feedback}
    for sync in graph.with_role(Role.SYNC):
        readers = [n.name for n in graph.nodes if reads_served(graph, n.name, sync.model)]
        assert {t for s, t in drawn if s == sync.name} == set(readers or [""])
    for edge in graph.edges:
        assert not edge.lag or (edge.source.node, edge.target) in drawn
    for loop in (n for n in graph.nodes if n.loop):
        assert loop.loop is not None
        assert (loop.loop.carried.node, register(loop.name)) in drawn
    for path, source, target, points in picture.feedback:
        assert path.get("stroke-dasharray")
        for name, point in ((source, points[0]), (target, points[-1])):
            if name:
                box = picture.boxes[name]
                assert point[0] == pytest.approx(box.right, abs=NEAR)
                assert box.y < point[1] < box.bottom


def reads_served(graph: Graph, name: str, model: str | None) -> bool:
    reader = graph.node(name)
    uses = any(use.model == model and use.port is Port.SERVED for use in reader.models)
    return uses and reader.role not in (Role.SYNC, Role.TRAIN)


def is_drawn_as_barrier(name: str, graph: Graph) -> bool:
    one = graph.node(name)
    works = one.role in (Role.COMPUTE, Role.TRAIN, Role.EVALUATE)
    return works and bool(one.inputs) and one.unit == "batch"


def check_texts(layout: Layout) -> None:
    """No text meets another, or a box."""
    remarks = [box for _arc, box in layout.remarks]
    texts = [rect(box) for box in (*layout.labels, *layout.titles, *remarks)]
    boxes = [rect(box) for box in (*layout.nodes, *layout.registers)]
    assert not any(a.meets(b) for a, b in combinations(texts, 2))
    assert not any(text.meets(box) for text in texts for box in boxes)


def rect(box: Box) -> Rect:
    return Rect(box.x, box.y, box.width, box.height)


def check_ways(layout: Layout) -> None:
    """Edges and feedback pass no box, and no label but their own."""
    boxes = [rect(box) for box in (*layout.nodes, *layout.registers)]
    labels = [rect(box) for box in layout.labels]
    for line in (*layout.wires, *layout.arcs):
        bent = line.wire is not None
        for start, end in pairwise(line.points):
            for point in between(start, end, bent):
                assert not any(box.inside(point) for box in boxes)
                own = bent and any(abs(point[0] - a.x - a.width / 2) < NEAR for a in labels)
                assert own or not any(label.inside(point) for label in labels)


def between(start: Point, end: Point, bent: bool) -> Iterator[Point]:
    """Points along a piece; bent ones are vertical at both ends."""
    for step in range(33):
        t = step / 32
        across = 3 * t**2 - 2 * t**3 if bent else t
        down = 1.5 * t - 1.5 * t**2 + t**3 if bent else t
        x = start[0] + (end[0] - start[0]) * across
        yield x, start[1] + (end[1] - start[1]) * down


@settings(max_examples=25, deadline=None)
@given(graph=graphs())
def test_text_has_a_line_for_each_node(graph: Graph) -> None:
    text = render_graph_text(graph)
    lines = text.split("\n\n")[1].splitlines()[1:]
    assert max(map(len, text.splitlines())) <= 100
    rows = {int(found[1]): found[0] for line in lines if (found := re.match(r" *(\d+)  .*", line))}
    named = [
        next(n.name for n in graph.nodes if re.search(rf"\b{n.name}\b", rows[i])) for i in rows
    ]
    assert list(rows) == list(range(1, len(graph.nodes) + 1))
    assert sorted(named) == sorted(n.name for n in graph.nodes)
    numbers = {name: number for number, name in enumerate(named, start=1)}
    for edge in graph.edges:
        if edge.source.node not in graph.regions_of(edge.target) and not edge.lag:
            assert numbers[edge.source.node] < numbers[edge.target]


def test_a_second_reader_and_rare_nodes_are_told() -> None:
    text = render_graph_text(grpo.build())
    assert "Rollouts → 3, 4, 6" in text
    assert "evaluate every 20" in text
    assert "9 ⇢ 2, 8  policy: staleness ≤ 1, every 4" in text


def test_names_are_escaped_and_long_ones_cut() -> None:
    long = "node " + "x" * 80
    graph = Graph("a < b", (
        node('quote " & <tag>', outputs="Rollouts"),
        node(long, ('quote " & <tag>', "Rollouts")),
    ))  # fmt: skip
    picture = Picture(render_graph_svg(graph))
    assert set(picture.nodes) == {'quote " & <tag>', long}
    assert picture.nodes[long].width < 450
    assert max(map(len, render_graph_text(graph).splitlines())) <= 100


def test_a_loop_that_only_passes_on_what_it_carries() -> None:
    graph = Graph("idle", (
        node("dataset", outputs="Rollouts", role=Role.SOURCE),
        node("look", ("loop wait", "Rollouts"), outputs="Rewards", region="loop wait"),
        node("loop wait", start="dataset", outputs="Rollouts", role=Role.REGION,
             loop=Loop(Source("loop wait"), (), 3)),
        node("verify", ("loop wait", "Rollouts"), outputs="Rewards"),
    ))  # fmt: skip
    picture = Picture(render_graph_svg(graph))
    assert {(s, t) for _p, s, t, _points in picture.edges} >= {(register("loop wait"), "loop wait")}


def test_pictures_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "from rlinf_graph.compiler.explain.drawing import render_graph_svg\n"
        "from tests.compiler.explain.drawn_graphs import nested\n"
        "print(render_graph_svg(nested()), end='')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": "."}
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, cwd=root, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout == render_graph_svg(nested())
