"""Measure a graph's nodes where they will run: in workers, on all devices of a machine at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rlinf_graph.backends.measure import measure
from rlinf_graph.backends.ray.placement import Placement
from rlinf_graph.backends.ray.run import session
from rlinf_graph.backends.ray.shipping import by_value, used_definitions
from rlinf_graph.dsl.node import NodeDefinition, definitions
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError, fail
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.measurement import Measurement
from rlinf_graph.nodes.plugins import load_plugins


def measure_on_workers(
    graph: Graph,
    cluster: Cluster,
    *,
    seed: int = 0,
    initial: Mapping[str, str] | None = None,
    address: str | None = None,
    report: Callable[[Measurement], None] = lambda _made: None,
) -> list[Measurement]:
    """Measure every node of a graph alone, on each device of the first machine at the same time.

    Devices of a machine are not equally fast, and share caches, links and power: what one of them
    does while the others rest is not what it does in a run. A measurement has the seconds of all.

    Args:
        graph: after the passes.
        cluster: of which a machine of the first node group is measured.
        seed: of every random draw.
        initial: folders to load first weights from, by model, instead of the declared ones.
        address: of a running Ray cluster; by default one is started here, and ended.
        report: called with each measurement when it is there.

    Raises:
        CompileError: RG0607, with the cause, when the user's code or an engine fails.
    """
    machine = replace(cluster, groups=(replace(cluster.groups[0], nodes=1),))
    made: list[Measurement] = []
    with session(machine, address), by_value(graph), _workers(graph, machine) as workers:
        streams = [
            worker.measure.options(num_returns="streaming").remote(seed, dict(initial or {}))
            for worker in workers
        ]
        for found in zip(*(map(_got, stream) for stream in streams), strict=True):
            for measured in _joined([one for each in found for one in each]):
                made.append(measured)
                report(measured)
    return made


class _Bench:
    """A device's worker."""

    def __init__(
        self,
        graph: Graph,
        cluster: Cluster,
        device: int,
        known: Mapping[str, NodeDefinition],
    ) -> None:
        """Know the graph's node types."""
        load_plugins()
        definitions.update(known)
        self._graph, self._cluster, self._device = graph, cluster, device

    def measure(self, seed: int, initial: Mapping[str, str]) -> Iterator[list[Measurement]]:
        """Measure node by node."""
        yield from measure(
            self._graph, self._cluster, device=self._device, seed=seed, initial=initial
        )


@contextmanager
def _workers(graph: Graph, machine: Cluster) -> Iterator[list[Any]]:
    """The actors of a machine's devices, ended with the block."""
    placement, actors = Placement(machine), list[Any]()
    try:
        shipped, known = ray.put(graph), used_definitions(graph)
        for device in range(machine.size):
            actor = ray.remote(_Bench).options(**placement.options(device))
            actors.append(actor.remote(shipped, machine, device, known))
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)
        placement.remove()


def _got(reference: Any) -> list[Measurement]:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, CompileError):
            raise error.cause from error
        raise fail("RG0609", f"a worker failed while measuring: {error.cause}") from error
    except RayError as error:
        raise fail("RG0609", "a worker died while measuring", notes=(str(error),)) from error


def _joined(found: list[Measurement]) -> list[Measurement]:
    """One measurement for what several devices have done, with the seconds of all of them."""
    same: dict[Measurement, tuple[float, ...]] = {}
    for made in found:
        work = made.model_copy(update={"seconds": (0.0,)})
        same[work] = (*same.get(work, ()), *made.seconds)
    return [work.model_copy(update={"seconds": seconds}) for work, seconds in same.items()]
