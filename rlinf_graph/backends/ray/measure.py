"""Measure a graph's nodes where they will run: in workers, on all devices of a machine at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from time import perf_counter
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from rlinf_graph.backends.engines import Instance
from rlinf_graph.backends.measure import SHARES, Bench, bench_plan
from rlinf_graph.backends.ray.board import Board
from rlinf_graph.backends.ray.hosted import HostedEngines, Pythons
from rlinf_graph.backends.ray.mailbox import Line, Mailbox
from rlinf_graph.backends.ray.placement import Placement
from rlinf_graph.backends.ray.run import session
from rlinf_graph.backends.ray.shipping import by_value, used_definitions
from rlinf_graph.dsl.node import NodeDefinition, definitions
from rlinf_graph.ir import packed
from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError, fail
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.measurement import Measurement
from rlinf_graph.ir.program import Channel, Program, WorkerGroup
from rlinf_graph.nodes.engine import Engine
from rlinf_graph.nodes.plugins import load_plugins

HANDOVERS = 12
"""Of each size; the first one does not count."""


def measure_on_workers(
    graph: Graph,
    cluster: Cluster,
    *,
    seed: int = 0,
    initial: Mapping[str, str] | None = None,
    address: str | None = None,
    pythons: Pythons | None = None,
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
        pythons: interpreters of engines that run in an environment of their own, by engine.
        report: called with each measurement when it is there.

    Raises:
        CompileError: RG0607, with the cause, when the user's code or an engine fails.
    """
    machine = replace(cluster, groups=(replace(cluster.groups[0], nodes=1),))
    made: list[Measurement] = []
    given = dict(initial or {})

    def host(placement: Placement, device: int) -> HostedEngines:
        plan, groups = bench_plan(graph, device)
        return HostedEngines(
            graph, plan, machine, groups.values(), placement,
            seed=seed, initial=given, pythons=pythons,
        )  # fmt: skip

    with session(machine, address), by_value(graph), _workers(graph, machine, host) as workers:
        streams = [
            worker.nodes.options(num_returns="streaming").remote(seed, given) for worker in workers
        ]
        for found in chain(zip(*(map(_got, stream) for stream in streams), strict=True),
                           _handovers(workers)):  # fmt: skip
            for measured in _joined([one for each in found for one in each]):
                made.append(measured)
                report(measured)
    return made


class _Worker:
    """A device's worker."""

    def __init__(
        self,
        graph: Graph,
        cluster: Cluster,
        device: int,
        known: Mapping[str, NodeDefinition],
        hosted: Mapping[Instance, Engine],
    ) -> None:
        """Know the graph's node types."""
        load_plugins()
        definitions.update(known)
        self._graph, self._cluster, self._device = graph, cluster, device
        self._hosted = hosted

    def nodes(self, seed: int, initial: Mapping[str, str]) -> Iterator[list[Measurement]]:
        """Measure node by node."""
        self._bench = Bench(self._graph, self._cluster, self._device, seed, initial, self._hosted)
        yield from self._bench.nodes()

    def handovers(self, board: Any, devices: int) -> list[Measurement]:
        """Send to the next worker while the one before sends to this one."""
        node, whole = self._bench.largest()
        mailbox = Mailbox(Line(board))
        to, of = (_edge(number % devices) for number in (self._device, self._device - 1))
        found: list[Measurement] = []
        for place, share in enumerate(SHARES):
            rows = np.asarray(whole.index.cpu())[: max(1, len(whole) // share)]
            batch = packed.select(whole, np.arange(len(rows)))
            seconds: list[float] = []
            for time in range(place * HANDOVERS, (place + 1) * HANDOVERS):
                start = perf_counter()
                mailbox.renew()
                sent, due = (to, (time,)), (of, (time,))
                mailbox.open([sent])
                mailbox.put(sent, rows, (0, (), "", ""), batch)
                mailbox.wait({due: rows})
                mailbox.take(due, rows)
                mailbox.free(due)
                seconds.append(perf_counter() - start)
            made = Measurement(
                node=node, kind="handover", samples=len(rows), seconds=tuple(seconds[1:])
            )
            found.append(made)
        return found


def _handovers(workers: list[Any]) -> Iterator[list[list[Measurement]]]:
    """From each worker to the next, all at once."""
    edges = [_edge(number) for number in range(len(workers))]
    ends = [str(number) for number in range(len(workers))]
    groups = tuple(WorkerGroup(name, 1, (), ()) for name in ends)
    channels = tuple(
        Channel(edge, Source(name), name, "", 0, len(SHARES) * HANDOVERS)
        for edge, name in zip(edges, ends, strict=True)
    )
    board = ray.remote(Board).options(num_cpus=0, max_concurrency=1000)
    made: Any = board.remote(Program("handover", groups, channels), 1)
    try:
        yield [_got(each) for each in [w.handovers.remote(made, len(workers)) for w in workers]]
    finally:
        ray.kill(made)


def _edge(device: int) -> str:
    return f"from {device}"


@contextmanager
def _workers(
    graph: Graph, machine: Cluster, host: Callable[[Placement, int], HostedEngines]
) -> Iterator[list[Any]]:
    """The actors of a machine's devices, ended with the block."""
    placement, actors, hosted = Placement(machine), list[Any](), list[HostedEngines]()
    try:
        shipped, known = ray.put(graph), used_definitions(graph)
        for device in range(machine.size):
            hosted.append(host(placement, device))
        for device, engines in enumerate(hosted):
            engines.wait()
            actor = ray.remote(_Worker).options(**placement.options(device))
            actors.append(actor.remote(shipped, machine, device, known, engines.proxies))
        yield actors
    finally:
        for engines in hosted:
            engines.close()
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
