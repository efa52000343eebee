"""From a compiled pipeline to its report."""

from __future__ import annotations

from rlinf_graph.compiler.compile import Compiled
from rlinf_graph.compiler.cost.profile import Profile
from rlinf_graph.compiler.explain.assumptions import assumptions_of
from rlinf_graph.compiler.explain.bottleneck import find_bottleneck, unfolded
from rlinf_graph.compiler.explain.intervals import iteration_width
from rlinf_graph.compiler.explain.rejected import (
    given_of,
    layout_text,
    margins_of,
    rejected_plans,
    summary,
)
from rlinf_graph.compiler.explain.report import Report, Stream
from rlinf_graph.compiler.explain.rows import carried, feedback, staleness_of, table
from rlinf_graph.compiler.explain.steady import Steady
from rlinf_graph.compiler.schedule.engines import why_engine
from rlinf_graph.compiler.simulate import simulate
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.plan import Plan
from rlinf_graph.ir.timeline import period


def explain(compiled: Compiled) -> Report:
    """Say what a plan does, how long it takes and why it was chosen.

    All figures come from the simulated timeline and the cost model. A plan that was given is
    simulated here, and there is nothing to reject.
    """
    steady = steady_state(compiled)
    graph, plan, found = compiled.graph, compiled.plan, compiled.found
    rows, bottleneck = table(steady), find_bottleneck(steady)
    return Report(
        pipeline=graph.name,
        cluster=compiled.cluster.summary(),
        mode=plan.mode,
        layout=layout_text(plan.placement),
        seconds=steady.seconds,
        width=iteration_width(steady, bottleneck),
        samples=samples_of(graph),
        staleness=staleness_of(graph, plan),
        stream=_stream(graph, plan),
        device_kind=steady.device_kind,
        rows=rows,
        feedback=feedback(steady, rows),
        carried=carried(steady, rows),
        window_s=steady.window[1] - steady.window[0],
        lanes=unfolded(steady),
        bottleneck=bottleneck,
        assumptions=assumptions_of(steady),
        rejected=rejected_plans(steady, found) if found else (),
        search=summary(found) if found else None,
        margins=margins_of(found) if found else (),
        given=given_of(found) if found else None,
        profile=_profile(compiled.costs.profile),
        engine_reasons=_engine_reasons(compiled),
    )


def steady_state(compiled: Compiled) -> Steady:
    """The plan with the events that the search left, or new ones."""
    graph, cluster, plan, costs = compiled.graph, compiled.cluster, compiled.plan, compiled.costs
    if compiled.found is not None:
        best = compiled.found.best
        return Steady(graph, cluster, plan, costs, best.events, best.iterations, best.seconds)
    lag = max((sync.staleness for sync in plan.syncs.values()), default=0)
    iterations = 4 + 4 * lag
    events = simulate(compiled.program, graph, plan, cluster, costs, iterations)
    return Steady(graph, cluster, plan, costs, events, iterations, period(events, iterations))


def _engine_reasons(compiled: Compiled) -> tuple[tuple[str, str], ...]:
    graph, plan, found = compiled.graph, compiled.plan, compiled.found
    if found is None:
        return ()
    reasons: list[tuple[str, str]] = []
    for leaf in plan.leaves():
        node = graph.node(leaf.node)
        kind = compiled.cluster.group_of(leaf.devices[0]).device.kind
        pin = found.pins.nodes.get(node.name)
        why = why_engine(graph, node, kind, found.engines, pin and pin.engine)
        reasons.append((node.name, why))
    return tuple(reasons)


def _profile(profile: Profile | None) -> str:
    return f"{profile.file or 'measured here'}, {profile.date[:10]}" if profile else ""


def samples_of(graph: Graph) -> int:
    """Samples that an iteration trains on; without training, the most that an edge carries."""
    edges = [edge for name in (n.name for n in graph.trainers().values())
             for edge in graph.into(name)] or graph.edges  # fmt: skip
    carried = [graph.node(e.source.node).volume for e in edges if e.type != "Weights"]
    return max((volume[0].samples for volume in carried if volume), default=0)


def _stream(graph: Graph, plan: Plan) -> Stream | None:
    nodes = [graph.node(leaf.node) for leaf in plan.leaves()]
    streaming = [n.name for n in nodes if plan.settings(n.name).chunks > 1 and not n.region]
    if not streaming:
        return None
    name = max(streaming, key=lambda n: plan.settings(n).chunks)
    node = graph.node(name)
    volume = graph.volume(node, node.inputs[0].source)
    chunks = plan.settings(name).chunks
    return Stream(chunks, volume.samples // volume.group // chunks)
