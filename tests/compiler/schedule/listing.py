"""All plans of a small space, one after another."""

from __future__ import annotations

from collections.abc import Iterator

from rlinf_graph.compiler.schedule.flow import Flow
from rlinf_graph.compiler.schedule.instance import Instance
from rlinf_graph.compiler.schedule.loads import Loads
from rlinf_graph.compiler.schedule.rows import Maker
from rlinf_graph.compiler.schedule.solve import Answer
from rlinf_graph.compiler.schedule.space import Space
from rlinf_graph.compiler.schedule.tree import Tree, expanded


def complete_trees(instance: Instance) -> list[Tree]:
    """Every tree over all items."""
    every = (1 << instance.items) - 1
    todo, found = [Tree("open" if every & (every - 1) else "leaf", every)], list[Tree]()
    while todo:
        tree = todo.pop()
        if tree.complete:
            found.append(tree)
        else:
            todo += expanded(tree, instance)
    return found


def everything(space: Space, stride: int = 1) -> Iterator[Answer]:
    """Every plan, or every so many-th; where nothing streams, in one micro-batch."""
    number = 0
    for place, (cut, instance) in enumerate(space.instances):
        maker = Maker(instance, Loads(instance))
        for tree in complete_trees(instance):
            if cut.chunks > 1 and not (tree.splits or "micro" in str(tree)):
                continue
            rows = maker.rows(tree, 0.0, float("inf"))
            flow = Flow(instance, rows)
            for lag in instance.lags if tree.splits and flow.order else instance.lags[:1]:
                seconds = flow.seconds(lag) if flow.order else []
                for row, closed in enumerate(seconds):
                    number += 1
                    if number % stride == 0:
                        yield Answer(
                            instance=place,
                            tree=tree,
                            picks=tuple(map(int, rows.picks[row])),
                            away=tuple(map(bool, rows.away[row])),
                            lag=lag,
                            seconds=max(float(closed), float(rows.load[row])),
                        )
