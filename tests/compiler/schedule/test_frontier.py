"""Plans for the least price, and those between it and the least time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlinf_graph.cli.pareto import pareto_text
from rlinf_graph.compiler.compile import compile_graph
from rlinf_graph.compiler.schedule.frontier import frontier, price_of
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import dump_cluster, load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from tests.compiler.schedule.test_search import grpo


def priced(name: str, *prices: float) -> Cluster:
    cluster = load_cluster(name)
    groups = zip(cluster.groups, prices, strict=True)
    return replace(cluster, groups=tuple(replace(g, price_per_hour=p) for g, p in groups))


def test_the_frontier_of_known_plans() -> None:
    seconds = {4: 10.0, 3: 12.0, 2: 19.0, 1: 41.0}  # 40, 36, 38 and 41 for an iteration
    points = frontier(priced("4xH100", 3600.0), lambda budget: (budget, seconds[budget[0]]))
    assert [(p.used, p.seconds, p.price) for p in points] == [
        ((4,), 10.0, 40.0),
        ((3,), 12.0, 36.0),
    ]


def test_the_cheapest_plan_and_those_in_between() -> None:
    cluster, graph = priced("2xH20+2xH100", 1.0, 3.0), grpo(64, 8, 2048, 1, 1e-3, 2)
    fastest = compile_graph(graph, cluster)
    assert fastest.found
    points = fastest.found.cheaper()
    assert points[0][0].seconds == pytest.approx(fastest.found.best.seconds, rel=1e-3)
    seconds, prices = [p.seconds for p, _ in points], [p.price for p, _ in points]
    assert seconds == sorted(seconds)
    assert prices == sorted(prices, reverse=True)
    for point, found in points:
        assert point.price == pytest.approx(price_of(cluster, found.used, found.best.seconds))
        assert all(u <= b for u, b in zip(found.used, point.budget, strict=True))
    cheapest = compile_graph(graph, cluster, objective="cost")
    assert cheapest.found
    assert cheapest.found.best.seconds == seconds[-1]
    _head, *lines = pareto_text(fastest).splitlines()
    told = lines[: len(points)]
    assert ["%" in line for line in told] == [False] + [True] * (len(points) - 1)
    ties = any(" tie " in line for line in told)
    assert [line.split(":")[0] for line in lines[len(points) :]] == ["tie"] * ties


def test_no_price_no_cost() -> None:
    with pytest.raises(CompileError, match=r"RG0405.*no price for node group h100"):
        compile_graph(grpo(8, 2, 64, 0, 0.0), load_cluster("2xH100"), objective="cost")


def test_a_price_is_kept_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(dump_cluster(priced("8xH100", 2.5)))
    assert load_cluster(str(file)).groups[0].price_per_hour == 2.5
    file.write_text(file.read_text().replace("= 2.5", "= 0"))
    with pytest.raises(CompileError, match="`price_per_hour` has to be positive"):
        load_cluster(str(file))
