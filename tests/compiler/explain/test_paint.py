"""Segments as characters."""

import pytest

from rlinf_graph.compiler.explain.paint import paint, symbols
from rlinf_graph.compiler.explain.report import Lane
from rlinf_graph.compiler.explain.segment import Segment
from rlinf_graph.compiler.explain.steady import covered


def work(node, start, end, kind="work"):
    return Segment(node, kind, start, end)


MARKS = {"a": "a", "b": "b"}


@pytest.mark.parametrize(
    ("segments", "drawn"),
    [
        ([], "    "),
        ([work("a", 0, 4)], "aaaa"),
        ([work("a", 0, 1), work("b", 2, 4)], "a bb"),
        ([work("a", 0, 1.6), work("b", 1.6, 4)], "aabb"),  # most of a column decides
        ([work("a", 0, 1.4), work("b", 1.4, 4)], "abbb"),
        ([work("a", 0, 0.4)], "    "),  # idle time counts, too
        ([work("a", 0, 3), work("a", 3, 4, "weights")], "aaas"),
        ([work("a", 0, 1, "switch"), work("a", 1, 4)], "~aaa"),
        ([work("a", 0, 0.3), work("b", 0.3, 0.6), work("a", 0.6, 1)], "a   "),  # added up
    ],
)
def test_a_column_shows_what_takes_most_of_it(segments, drawn):
    assert paint(segments, 4.0, 4, MARKS) == drawn


def test_six_orders_of_magnitude_look_alike():
    for scale in (1e-6, 1.0, 1e6):
        segments = [work("a", 0, scale), work("b", 2 * scale, 4 * scale)]
        assert paint(segments, 4 * scale, 8, MARKS) == "aa  bbbb"


def test_no_time_leaves_no_marks():
    assert paint([], 0.0, 3, MARKS) == "   "


def test_every_node_has_a_mark_of_its_own():
    names = [f"train {i}" for i in range(12)]
    lane = Lane("gpu 0", 1, 12.0, tuple(work(n, i, i + 1) for i, n in enumerate(names)))
    marks = symbols([lane])
    assert len(set(marks.values())) == len(names)
    assert not {"s", "~", " "} & set(marks.values())


def test_the_longest_work_is_drawn_darkest():
    lane = Lane("gpu 0", 1, 4.0, (work("a", 0, 1), work("b", 1, 4)))
    assert symbols([lane]) == {"b": "█", "a": "▓"}


def test_what_overlaps_counts_once():
    assert covered([work("a", 0, 2), work("b", 1, 3), work("a", 5, 6)]) == 4
